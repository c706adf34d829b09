"""PyTorch: gradients against finite differences, the layer against plain PyTorch, and what trainers do to layers."""

import copy
import gc

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from torch.utils.checkpoint import checkpoint  # noqa: E402

import cpnsa  # noqa: E402
import cpnsa.torch  # noqa: E402
import oracle  # noqa: E402

small = dict(num_q_heads=4, num_kv_heads=2, head_dim_qk=4, head_dim_v=3, compress_block=4, compress_stride=2,
             select_block=4, select_count=3, init_blocks=1, local_blocks=1, window=5)
compilers = hasattr(torch.library, "custom_op")


def configured(compressor="mlp", hidden=6, **change):
    return cpnsa.Config(**{**small, **change, "compressor": compressor, "compress_hidden_k": hidden,
                           "compress_hidden_v": hidden})


def layer_of(config, hidden=16, dtype=torch.float32, **options):
    torch.manual_seed(3)
    layer = cpnsa.torch.NativeSparseAttention(hidden, config, dtype=dtype, **options)
    with torch.no_grad():  # away from what is special about the initialisation
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return layer


def gradients_of(layer, run):
    layer.zero_grad()
    out = run()
    (out.float() * torch.linspace(0.5, 1.5, out.shape[-1])).sum().backward()
    return out.detach(), {name: parameter.grad.clone() for name, parameter in layer.named_parameters()}


def assert_same(found, expected, tolerance=0.0):
    """Relative to each tensor's norm; to the largest's where a gradient is zero but for rounding."""
    assert set(found) == set(expected)
    norms = {name: tensor.double().norm().item() for name, tensor in expected.items()}
    for name in expected:
        assert torch.isfinite(found[name]).all()
        error = (found[name].double() - expected[name].double()).norm().item()
        assert error <= tolerance * max(norms[name], 1e-3 * max(norms.values())), name


@pytest.mark.parametrize("compressor", ["mean", "linear", "mlp"])
def test_gradcheck(compressor):
    config = configured(compressor)
    plan = cpnsa.torch.Plan(config, [0, 13, 30], dtype=torch.float64)
    torch.manual_seed(0)
    parameters = {side: cpnsa.torch.Compressor(config, dim, 6, dtype=torch.float64).tensors()
                  for side, dim in (("k", 4), ("v", 3))}

    def leaf(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    q, gate = leaf(30, 4, 4), leaf(30, 4, 3)
    k, v = [leaf(30, 2, 4) for _ in range(3)], [leaf(30, 2, 3) for _ in range(3)]
    names = [(side, name) for side in "kv" for name in parameters[side]]

    def separate(q, gate, *rest):
        of = {"k": {}, "v": {}}
        for (side, name), tensor in zip(names, rest[6:]):
            of[side][name] = tensor
        return cpnsa.torch.attention(plan, q, rest[:3], rest[3:6], gate, of["k"], of["v"])

    leaves = [parameters[side][name] for side, name in names]
    assert torch.autograd.gradcheck(separate, (q, gate, *k, *v, *leaves))

    def shared(q, k, v):
        return cpnsa.torch.attention(plan, q, k, v, gate.detach(), parameters["k"], parameters["v"])

    assert torch.autograd.gradcheck(shared, (q, k[0], v[0]))


def test_frozen_parameters_change_no_other_gradient():
    config = configured("mlp")
    plan = cpnsa.torch.Plan(config, [0, 30], dtype=torch.float64)
    torch.manual_seed(3)
    tensors = [torch.randn(30, *shape, dtype=torch.float64) for shape in ((4, 4), (2, 4), (2, 3), (4, 3))]
    sides = [cpnsa.torch.Compressor(config, dim, 6, dtype=torch.float64) for dim in (4, 3)]
    parameters = [parameter for side in sides for parameter in side.parameters()]

    def gradients():
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        out = cpnsa.torch.attention(plan, *leaves, *(side.tensors() for side in sides))
        for parameter in parameters:
            parameter.grad = None
        out.square().sum().backward()
        return [tensor.grad for tensor in leaves + parameters]

    expected = gradients()
    assert all(gradient.abs().max() > 0 for gradient in expected)
    for frozen, parameter in enumerate(parameters):
        parameter.requires_grad_(False)
        for index, (found, right) in enumerate(zip(gradients(), expected)):
            if index == len(tensors) + frozen:
                assert found is None
            else:
                assert torch.equal(found, right)
        parameter.requires_grad_(True)


@pytest.mark.parametrize("compressor, branch_kv, dtype, tolerance", [
    ("mlp", True, torch.float64, 1e-12), ("linear", False, torch.float64, 1e-12), ("mean", True, torch.float32, 2e-5)])
def test_layer_against_plain_pytorch(compressor, branch_kv, dtype, tolerance):
    config = configured(compressor)
    layer = layer_of(config, branch_kv=branch_kv, dtype=dtype)
    cu_seqlens, T = [0, 3, 40, 61], 61
    x = torch.randn(T, 16, dtype=dtype)
    found = gradients_of(layer, lambda: layer(x, cu_seqlens))

    exact = copy.deepcopy(layer).double()

    def plain():
        y = x.double()
        q = exact.q_proj(y).view(T, 4, 4)
        k = exact.k_proj(y).view(T, 2, exact.branches, 4).unbind(2)
        v = exact.v_proj(y).view(T, 2, exact.branches, 3).unbind(2)
        k, v = (k, v) if branch_kv else (k[0], v[0])
        out = oracle.attention(config, cu_seqlens, q, k, v, exact.gate_proj(y).view(T, 4, 3),
                               exact.compress_k.tensors(), exact.compress_v.tensors())
        return exact.out_proj(out.flatten(1))

    expected = gradients_of(exact, plain)
    assert_same({"out": found[0]}, {"out": expected[0]}, tolerance)
    assert_same(found[1], expected[1], tolerance)


def test_batch_is_documents():
    layer = layer_of(configured())
    x = torch.randn(3, 20, 16)
    assert torch.equal(layer(x), layer(x.view(60, 16), [0, 20, 40, 60]).view(3, 20, 16))


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 4e-2), (torch.float16, 6e-3)])
def test_narrow_types(dtype, tolerance):
    """Within a few roundings of the same parameters in float64."""
    layer = layer_of(configured("mean")).double()
    x = torch.randn(50, 16, dtype=torch.float64)
    config, T = layer.config, 50
    q, k, v, gate = (torch.randn(shape, dtype=torch.float64).to(dtype)
                     for shape in ((T, 4, 4), (T, 2, 4), (T, 2, 3), (T, 4, 3)))

    def run(dtype):
        plan = cpnsa.torch.Plan(config, [0, T], dtype=dtype)
        leaves = [tensor.to(dtype).clone().requires_grad_() for tensor in (q, k, v, gate)]
        out = cpnsa.torch.attention(plan, *leaves)
        out.backward(torch.ones_like(out))
        return {"out": out.detach(), **{str(i): leaf.grad for i, leaf in enumerate(leaves)}}

    found = run(dtype)
    assert all(tensor.dtype == dtype for tensor in found.values())
    assert_same(found, run(torch.float64), tolerance)
    if dtype == torch.bfloat16:  # older PyTorch multiplies no float16 matrices on the CPU
        assert layer.to(dtype)(x.to(dtype), [0, 50]).dtype == dtype


def test_state_dict_round_trip_and_copies():
    layer = layer_of(configured())
    x = torch.randn(40, 16)
    expected = layer(x, [0, 40])
    fresh = cpnsa.torch.NativeSparseAttention(16, configured())
    assert not torch.equal(fresh(x, [0, 40]), expected)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x, [0, 40]), expected)
    assert torch.equal(copy.deepcopy(layer)(x, [0, 40]), expected)


def test_initialisation_is_sensible():
    torch.manual_seed(0)
    config = cpnsa.Config(num_q_heads=4, num_kv_heads=2, head_dim_qk=16, head_dim_v=16, compress_hidden_k=32,
                          compress_hidden_v=32)
    layer = cpnsa.torch.NativeSparseAttention(64, config)
    out = layer(torch.randn(256, 64), [0, 256])
    assert torch.isfinite(out).all() and 0.05 < out.std() < 2
    linear = cpnsa.torch.Compressor(configured("linear"), 4, position=False, dtype=torch.float64)
    x = torch.randn(8, 2, 4, dtype=torch.float64)
    made = oracle.summaries(configured("linear"), x, linear.tensors())
    assert torch.allclose(made, oracle.summaries(configured("mean"), x, {}))


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant):
    layer = layer_of(configured())
    x = torch.randn(40, 16, requires_grad=True)
    expected = gradients_of(layer, lambda: layer(x, [0, 17, 40]))
    found = gradients_of(layer, lambda: checkpoint(layer, x, [0, 17, 40], use_reentrant=reentrant))
    assert torch.equal(found[0], expected[0])
    assert_same(found[1], expected[1])


def test_two_forwards_before_their_backwards():
    """One plan serves many layers and micro-batches; a backward belongs to its own forward."""
    layer = layer_of(configured(), dtype=torch.float64)
    xs = [torch.randn(40, 16, dtype=torch.float64) for _ in range(2)]
    apart = [gradients_of(layer, lambda: layer(x, [0, 40]))[1] for x in xs]
    together = gradients_of(layer, lambda: layer(layer_input(xs[0]), [0, 40]) + layer(layer_input(xs[1]), [0, 40]))[1]
    assert_same(together, {name: apart[0][name] + apart[1][name] for name in apart[0]}, 1e-13)


def layer_input(x):
    return x.clone()


def test_autocast():
    layer = layer_of(configured())
    x = torch.randn(40, 16)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x, [0, 40])
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in layer.parameters())
    exact = layer(x, [0, 40])
    assert (out - exact).norm() < 3e-2 * exact.norm()


def test_saved_tensor_hooks():
    layer = layer_of(configured())
    x = torch.randn(40, 16)
    expected = gradients_of(layer, lambda: layer(x, [0, 40]))
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.clone(), lambda tensor: tensor):
        found = gradients_of(layer, lambda: layer(x, [0, 40]))
    assert_same(found[1], expected[1])


def test_retain_graph_and_double_backward():
    layer = layer_of(configured())
    x = torch.randn(40, 16, requires_grad=True)
    out = layer(x, [0, 40]).sum()
    first, = torch.autograd.grad(out, x, retain_graph=True)
    again, = torch.autograd.grad(out, x)
    assert torch.equal(first, again)
    out = layer(x, [0, 40]).sum()
    gradient, = torch.autograd.grad(out, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_no_grad_and_no_backward():
    config = configured("mean")
    plan = cpnsa.torch.Plan(config, [0, 40], backward=False)
    q, k, v, gate = torch.randn(40, 4, 4), torch.randn(40, 2, 4), torch.randn(40, 2, 3), torch.randn(40, 4, 3)
    selected = torch.full((40, 2, 3), -7, dtype=torch.int32)
    with torch.no_grad():
        out = cpnsa.torch.attention(plan, q, k, v, gate, selected=selected)
    _, chosen = oracle.document(config, q.double(), [k.double()] * 3, [v.double()] * 3, gate.double(), {}, {})
    for token, of_token in enumerate(chosen):
        for group, blocks in enumerate(of_token):
            assert selected[token, group].tolist() == blocks + [-1] * (3 - len(blocks))
    tracked = cpnsa.torch.attention(plan, q.requires_grad_(), k, v, gate)
    assert torch.equal(out, tracked)
    with pytest.raises(cpnsa.ArgumentError, match="backward=False"):
        tracked.sum().backward()


def test_tensors_that_are_not_what_their_memory_holds_are_copied():
    plan = cpnsa.torch.Plan(configured("mean"), [0, 40])
    q, k, v, gate = torch.randn(4, 40, 4), torch.randn(40, 2, 4), torch.randn(40, 2, 3), torch.randn(40, 4, 3)
    expected = cpnsa.torch.attention(plan, q.transpose(0, 1).contiguous(), k, v, gate)
    assert torch.equal(cpnsa.torch.attention(plan, q.transpose(0, 1), k, v, gate), expected)
    negative = torch._neg_view(-q.transpose(0, 1).contiguous())
    assert negative.is_contiguous() and negative.is_neg()
    assert torch.equal(cpnsa.torch.attention(plan, negative, k, v, gate), expected)


@pytest.mark.parametrize("name, wrong, message", [
    ("q", lambda t: t.double(), r"q: found f64 \[40, 4, 4\], expected f32"),
    ("q", lambda t: t.int(), "q: found a tensor of torch.int32"),
    ("k", lambda t: t[:-1], r"k_cmp: found f32 \[39, 2, 4\]"),
    ("v", lambda t: t.to("meta"), "v_cmp: found a tensor on meta, expected one on cpu"),
    ("gate", lambda t: t.numpy(), "gate: found ndarray, expected a torch.Tensor"),
    ("gate", lambda t: None, "gate: found"),
    ("q", lambda t: t.to_sparse(), "q: found a tensor of layout torch.sparse_coo, expected a dense one"),
    ("k", lambda t: [t, t], "k: found 2 tensors"),
])
def test_bad_tensors(name, wrong, message):
    plan = cpnsa.torch.Plan(configured("mean"), [0, 40])
    given = dict(q=torch.randn(40, 4, 4), k=torch.randn(40, 2, 4), v=torch.randn(40, 2, 3), gate=torch.randn(40, 4, 3))
    bad = {**given, name: wrong(given[name])}
    with pytest.raises((cpnsa.ArgumentError, RuntimeError), match=message):
        cpnsa.torch.attention(plan, **bad)
    assert torch.isfinite(cpnsa.torch.attention(plan, **given)).all()


def test_bad_plans():
    config = configured("mean")
    for options, message in [(dict(dtype=torch.int64), "dtype: found torch.int64"),
                             (dict(device="meta"), "device: found meta"),
                             (dict(partition="diagonal"), "partition: found 'diagonal'"),
                             (dict(group="world"), "group: found str"),
                             (dict(exchange="maybe"), "exchange: found 'maybe'")]:
        with pytest.raises(cpnsa.ArgumentError, match=message):
            cpnsa.torch.Plan(config, [0, 40], **options)
    plan = cpnsa.torch.Plan(config, [0, 40])
    q, k, v, gate = torch.randn(40, 4, 4), torch.randn(40, 2, 4), torch.randn(40, 2, 3), torch.randn(40, 4, 3)
    out = cpnsa.torch.attention(plan, q.requires_grad_(), k, v, gate)
    plan.close()
    with pytest.raises(cpnsa.ArgumentError, match="closed"):
        out.sum().backward()
    with pytest.raises(cpnsa.ArgumentError, match="closed"):
        cpnsa.torch.attention(plan, q, k, v, gate)
    with pytest.raises(cpnsa.ArgumentError, match="expected a cpnsa.torch.Plan"):
        cpnsa.torch.attention(config, q, k, v, gate)
    with pytest.raises(cpnsa.ArgumentError, match="expected 'logits'"):
        cpnsa.torch.NativeSparseAttention(16, configured(gate="values"))
    with pytest.raises(cpnsa.ArgumentError, match="expected one of them"):
        layer_of(configured())(torch.randn(40, 16))


def test_positions_and_shards():
    partition = cpnsa.Partition.custom([0, 8, 8, 20], 4, [[(12, 20), (0, 4)]  + [(4, 12)]])
    plan = cpnsa.torch.Plan(configured("mean"), [0, 8, 8, 20], partition=partition)
    assert plan.rows.tolist() == [*range(12, 20), *range(4), *range(4, 12)]
    assert plan.positions.tolist() == [*range(4, 12), *range(4), *range(4, 8), *range(4)]
    assert plan.shard(torch.arange(20)).tolist() == plan.rows.tolist()
    with pytest.raises(cpnsa.ArgumentError, match="shard: found 19 tokens"):
        plan.shard(torch.arange(19))


@pytest.mark.skipif(not compilers,
                    reason=f"PyTorch {torch.__version__} has no torch.library.custom_op, 2.4 and later do")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_without_graph_breaks(backend):
    layer = layer_of(configured())
    plan = layer.plan([0, 17, 40])
    x = torch.randn(40, 16)
    expected = gradients_of(layer, lambda: layer(x, plan=plan))
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    found = gradients_of(layer, lambda: compiled(x, plan=plan))
    assert_same({"out": found[0]}, {"out": expected[0]}, 1e-6)
    assert_same(found[1], expected[1], 1e-5)


@pytest.mark.skipif(not compilers,
                    reason=f"PyTorch {torch.__version__} has no torch.library.custom_op, 2.4 and later do")
def test_operators_are_well_formed():
    from cpnsa.torch import compiled

    plan = cpnsa.torch.Plan(configured("mean"), [0, 40])
    tensors = [torch.randn(40, 4, 4), torch.randn(40, 2, 4), torch.randn(40, 2, 3), torch.randn(40, 4, 3)]
    indices = [0, 1, 1, 1, 2, 2, 2, 3] + [-1] * 15
    arguments = (plan.token, torch.tensor([3]), plan.saved_bytes, plan.steps.head_dim_v, indices, tensors)
    torch.library.opcheck(compiled.attention_forward, arguments, test_utils=("test_schema", "test_faketensor"))
    out, memory, saved = compiled.attention_forward(*arguments)
    number = saved.item()
    del saved
    with pytest.raises(cpnsa.ArgumentError, match="token: found number"):
        cpnsa._core.of_token(number)
    number = plan.token.item()
    del plan  # the arguments hold the layer
    gc.collect()
    assert torch.equal(compiled.attention_forward(*arguments)[0], out)
    del arguments
    gc.collect()
    with pytest.raises(cpnsa.ArgumentError, match="token: found number"):
        cpnsa._core.of_token(number)


@pytest.mark.skipif(not compilers,
                    reason=f"PyTorch {torch.__version__} has no torch.library.custom_op, 2.4 and later do")
def test_a_compiled_graph_keeps_its_plan():
    """Between forward and backward, and in a program that was exported."""
    layer, x = layer_of(configured()), torch.randn(40, 16)
    expected = gradients_of(layer, lambda: layer(x, [0, 17, 40]))
    plan = layer.plan([0, 17, 40])
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager")
    layer.zero_grad()
    out = compiled(x, plan=plan)
    layer._plans.clear()
    del plan
    gc.collect()
    (out * torch.linspace(0.5, 1.5, out.shape[-1])).sum().backward()
    assert_same({name: parameter.grad for name, parameter in layer.named_parameters()}, expected[1], 1e-5)

    class Whole(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.documents = layer, layer.plan([0, 17, 40])

        def forward(self, x):
            return self.layer(x, plan=self.documents)

    program = torch.export.export(Whole(), (x,), strict=False).module()
    layer._plans.clear()
    gc.collect()
    assert torch.allclose(program(x), expected[0], atol=1e-6)
