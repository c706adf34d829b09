"""PyTorch: what callers do that no example does."""

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
import cpnsa  # noqa: E402
import cpnsa.torch  # noqa: E402

keys = dict(num_q_heads=2, num_kv_heads=2, head_dim_qk=4, head_dim_v=4, compress_block=4, compress_stride=2,
            select_block=4, select_count=3, init_blocks=1, local_blocks=1, window=5, compress_hidden_k=6,
            compress_hidden_v=6)
mean = cpnsa.Config(**keys, compressor="mean")
T = 40
needs_compiler = pytest.mark.skipif(
    not hasattr(torch.library, "custom_op"),
    reason=f"PyTorch {torch.__version__} has no torch.library.custom_op, 2.4 and later do")


def tensors(dtype=torch.float64):
    torch.manual_seed(0)
    return [torch.randn(T, *shape, dtype=dtype) for shape in ((2, 4), (2, 4), (2, 4), (2, 3))]


def layer_of(**options):
    torch.manual_seed(3)
    return cpnsa.torch.NativeSparseAttention(16, cpnsa.Config(**keys), **options)


def gradients_of(run, *given):
    leaves = [tensor.detach().clone().requires_grad_() for tensor in given]
    run(*leaves).square().sum().backward()
    return [leaf.grad for leaf in leaves]


def assert_close(found, expected):
    for a, b in zip(found, expected):
        assert (a - b).norm() < 1e-13 * b.norm()


@pytest.fixture(params=["eager", pytest.param("aot_eager", marks=needs_compiler)])
def compiled(request):
    if request.param == "eager":
        return lambda function: function
    torch._dynamo.reset()
    return lambda function: torch.compile(function, fullgraph=True, backend=request.param)


def test_one_tensor_for_three_branches_by_name(compiled):
    plan = cpnsa.torch.Plan(mean, [0, T], dtype=torch.float64)
    q, k, v, gate = tensors()
    found = gradients_of(compiled(lambda q, k, v: cpnsa.torch.attention(plan, q, [k, k, k], [v, v, v], gate)), q, k, v)
    assert_close(found, gradients_of(lambda q, k, v: cpnsa.torch.attention(plan, q, k, v, gate), q, k, v))


def test_one_tensor_for_queries_keys_and_values(compiled):
    plan = cpnsa.torch.Plan(mean, [0, T], dtype=torch.float64)
    q, _, _, gate = tensors()
    found = gradients_of(compiled(lambda x: cpnsa.torch.attention(plan, x, x, x, gate)), q)
    assert_close(found, [sum(gradients_of(lambda q, k, v: cpnsa.torch.attention(plan, q, k, v, gate), q, q, q))])


def test_the_two_ways_of_numbering_tensors_agree():
    """The fast way of the extension module, where it takes the arguments, against tensors.py."""
    from cpnsa.torch.function import _checked

    config = cpnsa.Config(**keys)
    plan = cpnsa.torch.Plan(config, [0, T], dtype=torch.float64)
    q, k, v, gate = tensors()
    side = cpnsa.torch.Compressor(config, 4, 6, dtype=torch.float64).tensors()
    taken = 0
    for arguments in ((q, k, v, gate), (q, [k, k, v], v, gate), (q, (k, v, k), [v, v, v], gate), (q, q, q, gate),
                      (q, k, v, gate, side), (q, k, v, gate, side, side), (q, k, v, gate, None, side),
                      (q, k, v, gate, {"pos": side["pos"], "w1": None}, {}), (q.float(), k, v, gate),
                      (q.flip(0).flip(0), k, v, gate),
                      (torch._neg_view(q), k, v, gate), (q, k.transpose(0, 1).contiguous().transpose(0, 1), v, gate)):
        arguments += (None,) * (6 - len(arguments))
        found = cpnsa._core._numbered(torch.float64, *arguments)
        expected = _checked(plan, False, *arguments)
        if found is not None:
            taken += 1
            assert found[0] == expected[0] and len(found[1]) == len(expected[1])
            assert all(a.data_ptr() == b.data_ptr() for a, b in zip(found[1], expected[1]))
    assert taken == 9


def test_selected_blocks_of_the_layer():
    layer, x = layer_of(branch_kv=False), torch.randn(T, 16)
    found, expected = (torch.full((T, 2, 3), -7, dtype=torch.int32) for _ in range(2))
    out = layer(x, [0, 17, T], selected=found)
    q, k, v = (one(x).view(T, 2, 4) for one in (layer.q_proj, layer.k_proj, layer.v_proj))
    cpnsa.torch.attention(layer.plan([0, 17, T]), q, k, v, layer.gate_proj(x).view(T, 2, 3), layer.compress_k.tensors(),
                          layer.compress_v.tensors(), selected=expected)
    assert torch.equal(found, expected) and torch.equal(out, layer(x, [0, 17, T]))
    assert found.min() == -1 and found.max() == 5


def test_one_compressor_for_keys_and_values():
    config = cpnsa.Config(**keys)
    plan = cpnsa.torch.Plan(config, [0, T], dtype=torch.float64)
    parameters = cpnsa.torch.Compressor(config, 4, 6, dtype=torch.float64).tensors()
    names = list(parameters)

    def run(*both):
        sides = [dict(zip(names, part)) for part in (both[:len(names)], both[-len(names):])]
        return cpnsa.torch.attention(plan, *tensors(), *sides)

    apart = gradients_of(run, *parameters.values(), *parameters.values())
    assert_close(gradients_of(run, *parameters.values()), [a + b for a, b in zip(apart, apart[len(names):])])


def test_a_compressor_whose_weight_is_computed():
    """As by parametrisations, and by wrappers that put tensors where parameters were."""
    from torch.nn.utils import parametrize

    class Doubled(torch.nn.Module):
        def forward(self, weight):
            return 2 * weight

    x = torch.randn(T, 16)
    layer, expected = layer_of(), layer_of()
    parametrize.register_parametrization(layer.compress_k, "w1", Doubled())
    with torch.no_grad():
        expected.compress_k.w1.mul_(2)
    assert torch.equal(layer(x, [0, T]), expected(x, [0, T]))


def test_views_of_opposite_numbers():
    plan = cpnsa.torch.Plan(mean, [0, T], dtype=torch.float64)
    q, k, v, gate = tensors()
    assert torch.equal(cpnsa.torch.attention(plan, torch._neg_view(q), k, v, gate),
                       cpnsa.torch.attention(plan, -q, k, v, gate))


@pytest.mark.parametrize("cu_seqlens", [
    torch.tensor([[0, 17, T]]), [[0, 17, T]], [torch.tensor(0), torch.tensor(17), torch.tensor(T)],
    torch.tensor([0, 17, T], dtype=torch.int32), (0, 17, T), torch.tensor([0, 17, T]).numpy()])
def test_forms_of_bounds(cu_seqlens):
    layer, x = layer_of(), torch.randn(T, 16)
    assert torch.equal(layer(x, cu_seqlens), layer(x, [0, 17, T]))
    assert len(layer._plans) == 1  # by value


def test_bounds_that_are_refilled_in_place():
    layer, x = layer_of(), torch.randn(T, 16)
    bounds = torch.tensor([0, 17, T])
    first = layer(x, bounds)
    bounds[1] = 23
    assert torch.equal(layer(x, bounds), layer(x, [0, 23, T])) and torch.equal(first, layer(x, [0, 17, T]))


@pytest.mark.parametrize("given, match", [
    (lambda x: dict(cu_seqlens=[0, 30]), "x: found 40 rows, expected 30: the last bound of cu_seqlens"),
    (lambda x: dict(), "cu_seqlens: found neither"), (lambda x: dict(plan=x), "plan: found Tensor"),
    (lambda x: dict(cu_seqlens=torch.empty(3, device="meta")), "cu_seqlens: found"),
    (lambda x: dict(cu_seqlens=[[0, 17], [17, T]]), "cu_seqlens: found"),
    (lambda x: dict(cu_seqlens=[False, T]), "cu_seqlens: found")])
def test_errors_in_the_words_of_the_caller(given, match):
    x = torch.randn(T, 16)
    with pytest.raises(cpnsa.ArgumentError, match=match):
        layer_of()(x, **given(x))


@pytest.mark.skipif(not hasattr(torch, "set_default_device"),
                    reason=f"PyTorch {torch.__version__} has no torch.set_default_device, 2.0 and later do")
def test_another_default_device():
    layer, x = layer_of(rotary=rotary), torch.randn(T, 16)
    expected = layer(x, [0, 17, T])
    torch.set_default_device("meta")
    try:
        layer._plans.clear()
        found = layer(x, [0, 17, T])
    finally:
        torch.set_default_device(None)
    assert torch.equal(found, expected)


@needs_compiler
def test_fake_tensors():
    """As tools that estimate a model's memory use: shapes alone, forward and backward."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        layer, x = layer_of(rotary=rotary), torch.randn(T, 16, requires_grad=True)
        out = layer(x, [0, 17, T])
        out.sum().backward()
        plan = layer.plan([0, 17, T])
        assert plan.shard(x).shape == x.shape
        with pytest.raises(cpnsa.ArgumentError, match="cu_seqlens: found"):
            layer(x, torch.tensor([0, 17, T]).cos().long())
    assert out.shape == x.shape == x.grad.shape and isinstance(out, torch._subclasses.FakeTensor)
    assert all(parameter.grad.shape == parameter.shape for parameter in layer.parameters())


def test_options_are_one_object_or_names():
    options = cpnsa.AttentionOptions(backward=False, timing=True)
    plan = cpnsa.torch.Plan(mean, [0, T], options=options)
    assert plan.options == cpnsa.torch.Plan(mean, [0, T], backward=False, timing=True).options
    with pytest.raises(Exception, match="cannot assign"):
        options.timing = False
    with pytest.raises(cpnsa.ArgumentError, match="options: found them, and timing by name"):
        cpnsa.torch.Plan(mean, [0, T], options=options, timing=True)
    with pytest.raises(TypeError, match="'windows'"):
        cpnsa.torch.Plan(mean, [0, T], windows=3)


@pytest.mark.parametrize("cu_seqlens", ["bounds", ["a", "b"], [0, 40.0], torch.tensor([0.0, 40.0]), [0, 2**70],
                                        [0, None]])
def test_bounds_that_are_no_integers(cu_seqlens):
    with pytest.raises(cpnsa.ArgumentError, match="cu_seqlens: found .*, expected integers"):
        cpnsa.torch.Plan(mean, cu_seqlens)


def test_empty_documents_and_parts_of_tensors():
    layer, x = layer_of(), torch.randn(T + 3, 16)
    assert torch.equal(layer(x[3:], [0, 0, 17, 17, T, T]), layer(x[3:].clone(), [0, 17, T]))


def test_no_compressor_trains():
    """A gradient is computed for what wants one alone."""
    config = cpnsa.Config(**keys)
    plan = cpnsa.torch.Plan(config, [0, T], dtype=torch.float64)
    sides = [cpnsa.torch.Compressor(config, 4, 6, dtype=torch.float64).requires_grad_(False) for _ in range(2)]
    sides[1].w2.requires_grad_()
    q, k, v, gate = tensors()
    cpnsa.torch.attention(plan, q, k, v.requires_grad_(), gate, *(side.tensors() for side in sides)).sum().backward()
    assert v.grad.norm() > 0 and sides[1].w2.grad.norm() > 0
    assert q.grad is None and sides[0].w2.grad is None and sides[1].w1.grad is None


def rotary(x, positions):
    return x * positions[:, None, None].cos()


@needs_compiler
def test_compile_with_positions():
    layer = layer_of(rotary=rotary)
    plan, x = layer.plan([0, 17, T]), torch.randn(T, 16)
    torch._dynamo.reset()
    found = torch.compile(layer, fullgraph=True, backend="aot_eager")(x, plan=plan)
    assert torch.allclose(found, layer(x, plan=plan))


@needs_compiler
@pytest.mark.parametrize("dynamic", [True, None])
def test_compile_with_lengths_that_change(dynamic):
    layer = layer_of()
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for length in (40, 52, 61, 80):
        plan, x = layer.plan([0, length]), torch.randn(length, 16)
        found = gradients_of(lambda x: compiled(x, plan=plan), x)
        assert torch.allclose(found[0], gradients_of(lambda x: layer(x, plan=plan), x)[0], atol=1e-5)


@needs_compiler
def test_compile_of_a_plan_without_backward():
    layer = layer_of()
    plan = cpnsa.torch.Plan(layer.config, [0, T], backward=False)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.isfinite(compiled(torch.randn(T, 16), plan=plan)).all()
    with pytest.raises(cpnsa.ArgumentError, match="backward=False"):
        compiled(torch.randn(T, 16), plan=plan).sum().backward()
