"""The layer's variants in PyTorch and NumPy, against plain PyTorch and finite differences."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import cpnsa  # noqa: E402
import cpnsa.numpy  # noqa: E402
import cpnsa.torch  # noqa: E402
import oracle  # noqa: E402

small = dict(num_q_heads=4, num_kv_heads=2, head_dim_qk=4, head_dim_v=3, compress_block=4, compress_stride=2,
             select_block=4, select_count=3, init_blocks=1, local_blocks=1, window=5, compressor="mean")
operators = hasattr(torch, "compiler") and hasattr(torch.library, "custom_op")


def rotary(x, positions):
    """Pairs of channels half of the rotated ones apart."""
    half = x.shape[-1] // 2
    cos, sin = (table[:, None] for table in angles(positions.to(x.dtype), half))
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


def angles(positions, pairs):
    angle = positions[:, None] / 3.0 ** torch.arange(pairs, dtype=positions.dtype)
    return angle.cos(), angle.sin()


def inputs_of(tokens, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape):
        return torch.randn(*shape, dtype=dtype, generator=generator).requires_grad_()

    return (leaf(tokens, 4, 4), [leaf(tokens, 2, 4) for _ in range(3)], [leaf(tokens, 2, 3) for _ in range(3)],
            leaf(tokens, 4, 3))


def test_own_query_sinks_and_rotation_have_the_right_gradients():
    config = cpnsa.Config(**small)
    plan = cpnsa.torch.Plan(config, [0, 13, 30], dtype=torch.float64, compressed_query=True, sinks=True)
    q, k, v, gate = inputs_of(30)
    q_cmp = torch.randn_like(q).requires_grad_()
    sinks = [torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    rotation = angles(torch.arange(7, dtype=torch.float64), 2)

    def run(q, q_cmp, slc, win, *kv):
        return cpnsa.torch.attention(plan, q, kv[:3], kv[3:6], gate, q_cmp=q_cmp, sinks=(slc, win),
                                     summary_rotation=rotation)

    assert torch.autograd.gradcheck(run, (q, q_cmp, *sinks, *k, *v))


@pytest.mark.parametrize("operator", [False, True])
def test_variants_against_the_oracle(operator):
    if operator and not operators:
        pytest.skip("operators need PyTorch 2.4")
    config = cpnsa.Config(**small)
    plan = cpnsa.torch.Plan(config, [0, 30], dtype=torch.float64, compressed_query=True, sinks=True)
    q, k, v, gate = inputs_of(30)
    q_cmp = torch.randn_like(q)
    sinks = [torch.randn(4, dtype=torch.float64) for _ in range(2)]
    found = cpnsa.torch.attention(plan, q, k, v, gate, q_cmp=q_cmp, sinks=sinks, operator=operator)
    expected = oracle.document(config, q, k, v, gate, {}, {}, q_cmp=q_cmp, sinks=sinks)[0]
    torch.testing.assert_close(found, expected)


def test_log_sum_exps_and_given_blocks():
    config = cpnsa.Config(**small)
    q, k, v, gate = inputs_of(30)
    of_plan = cpnsa.torch.Plan(config, [0, 30], dtype=torch.float64)
    chosen = torch.full((30, 2, 3), -9, dtype=torch.int32)
    wanted = [torch.full((30, 4), float("nan"), dtype=torch.float64) for _ in range(3)]
    first = cpnsa.torch.attention(of_plan, q, k, v, gate, selected=chosen, log_sum_exp=wanted)
    scores = torch.einsum("thd,uhd->htu", q, k[2].repeat_interleave(2, 1)) * config.softmax_scale
    t, u = torch.arange(30)[:, None], torch.arange(30)
    hidden = (u > t) | (u <= t - config.window)
    torch.testing.assert_close(wanted[2], scores.masked_fill(hidden, -np.inf).logsumexp(-1).T)
    assert torch.isinf(wanted[0][:3]).all() and torch.isfinite(wanted[0][3:]).all()
    assert torch.isfinite(wanted[1]).all()

    given = cpnsa.torch.Plan(config, [0, 30], dtype=torch.float64, given_selection=True)
    again = cpnsa.torch.attention(given, q, k, v, gate, given_selection=chosen)
    assert torch.equal(first, again)
    chosen[20, 0] = torch.tensor([2, 2, -1])
    with pytest.raises(cpnsa.ArgumentError, match="found block 2 at row 20, KV head 0, entry 1"):
        cpnsa.torch.attention(given, q, k, v, gate, given_selection=chosen)


@pytest.mark.parametrize("branches", ["cmp_slc", "cmp_win", "slc_win", "cmp", "slc", "win"])
def test_branches_that_are_off(branches):
    config = cpnsa.Config(**small)
    q, k, v, gate = inputs_of(30)
    on = torch.tensor([name in branches for name in ("cmp", "slc", "win")], dtype=torch.float64)
    expected = oracle.document(config, q, k, v, torch.sigmoid(gate) * on, {}, {}, gates=True)[0]
    plan = cpnsa.torch.Plan(cpnsa.Config(**small, branches=branches), [0, 30], dtype=torch.float64)
    torch.testing.assert_close(cpnsa.torch.attention(plan, q, k, v, gate), expected)


def test_numpy_has_the_variants():
    config = cpnsa.Config(**small)
    q, k, v, gate = inputs_of(30)
    q_cmp, sink = torch.randn_like(q), torch.randn(4, dtype=torch.float64)
    plan = cpnsa.torch.Plan(config, [0, 30], dtype=torch.float64, compressed_query=True, sinks=True)
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (q, q_cmp, sink)]
    rotation = angles(torch.arange(14, dtype=torch.float64), 2)
    out = cpnsa.torch.attention(plan, leaves[0], k, v, gate, q_cmp=leaves[1], sinks=leaves[2],
                                summary_rotation=rotation)
    out.backward(torch.ones_like(out))
    layer = cpnsa.numpy.Attention(config, cu_seqlens=[0, 30], dtype="f64", compressed_query=True, sinks=True)
    arrays = [tensor.detach().numpy() for tensor in (q, q_cmp, sink, gate, *k, *v)]
    log_sum_exp = np.full((30, 4), np.nan)
    found, saved = layer.forward(arrays[0], arrays[4:7], arrays[7:10], arrays[3], q_cmp=arrays[1], sinks=arrays[2],
                                 summary_rotation=tuple(table.numpy() for table in rotation),
                                 log_sum_exp=(None, None, log_sum_exp))
    np.testing.assert_array_equal(found, out.detach().numpy())
    assert np.isfinite(log_sum_exp).all()
    gradients = layer.backward(np.ones_like(found), saved)
    np.testing.assert_allclose(gradients["q_cmp"], leaves[1].grad.numpy())
    np.testing.assert_allclose(gradients["k_cmp"], k[0].grad.numpy())
    np.testing.assert_allclose(gradients["sink_slc"] + gradients["sink_win"], leaves[2].grad.numpy(), rtol=1e-12)


def layer_of(**options):
    torch.manual_seed(1)
    layer = cpnsa.torch.NativeSparseAttention(16, cpnsa.Config(**small), rotary=rotary, dtype=torch.float64, **options)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if "sink" in name:
                parameter.normal_()
    return layer


@pytest.mark.parametrize("branch_kv", [True, False])
@pytest.mark.parametrize("summaries", ["rotated", "unrotated", "compress then rotate"])
def test_positions_of_summaries(summaries, branch_kv):
    tables = lambda first, last: angles((first + last).double() / 2, 2)
    layer = layer_of(summaries=tables if summaries == "compress then rotate" else summaries, branch_kv=branch_kv,
                     sinks=True)
    x = torch.randn(30, 16, dtype=torch.float64)
    positions = torch.arange(30)
    q = layer.q_proj(x).view(30, 4, 4)
    k = layer.k_proj(x).view(30, 2, -1, 4).unbind(2) * (1 if branch_kv else 3)
    v = layer.v_proj(x).view(30, 2, -1, 3).unbind(2) * (1 if branch_kv else 3)
    rotated = [rotary(one, positions) for one in k]
    turned = {"rotated": rotated, "unrotated": [k[0], *rotated[1:]],
              "compress then rotate": [k[0], *rotated[1:]]}[summaries]
    out = oracle.document(
        layer.config, rotary(q, positions), turned, v, layer.gate_proj(x).view(30, 4, 3), layer.compress_k.tensors(),
        layer.compress_v.tensors(), q_cmp=q if summaries == "unrotated" else None,
        sinks=(layer.sink_slc, layer.sink_win),
        turn=(lambda s: rotary(s, torch.arange(s.shape[0]) * 2.0 + 1.5)) if "then" in summaries else None)[0]
    torch.testing.assert_close(layer(x, [0, 30]), layer.out_proj(out.flatten(1)))


@pytest.mark.skipif(not hasattr(torch.nn.functional, "scaled_dot_product_attention"), reason="needs PyTorch 2.0")
def test_full_attention_is_pytorchs():
    layer = layer_of(attention="full")
    x = torch.randn(30, 16, dtype=torch.float64)
    found = layer(x, [0, 13, 30])
    q = layer.q_proj(x).view(30, 4, 4)
    k, v = layer.k_proj(x).view(30, 2, 3, 4)[:, :, 1], layer.v_proj(x).view(30, 2, 3, 3)[:, :, 1]
    positions = torch.cat([torch.arange(13), torch.arange(17)])
    q, k = rotary(q, positions), rotary(k, positions)
    document = (torch.arange(30) >= 13).long()
    t, u = torch.arange(30)[:, None], torch.arange(30)
    hidden = (u > t) | (document[:, None] != document)
    scores = torch.einsum("thd,uhd->htu", q, k.repeat_interleave(2, 1)) / 2
    p = scores.masked_fill(hidden, -np.inf).softmax(-1)
    out = torch.einsum("htu,uhd->thd", p, v.repeat_interleave(2, 1))
    torch.testing.assert_close(found, layer.out_proj(out.flatten(1)))
    assert set(layer.state_dict()) == set(layer_of().state_dict())


def test_position_ids_and_padding_are_documents():
    layer = layer_of()
    x = torch.randn(30, 16, dtype=torch.float64)
    positions = torch.cat([torch.arange(13), torch.arange(17)])
    assert torch.equal(layer(x, position_ids=positions), layer(x, [0, 13, 30]))
    assert cpnsa.torch.bounds_of_positions(torch.arange(6).repeat(2, 1)) == [0, 6, 12]
    with pytest.raises(cpnsa.ArgumentError, match="found 7 at token 3"):
        cpnsa.torch.bounds_of_positions(torch.tensor([0, 1, 2, 7]))
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1]])
    assert cpnsa.torch.bounds_of_mask(mask) == [0, 4, 6, 7, 12]
    batch = x[:12].view(2, 6, 16)
    found = layer(batch, attention_mask=mask)
    torch.testing.assert_close(found[0, :4], layer(x[:4], [0, 4]))
    torch.testing.assert_close(found[1, 1:], layer(x[7:12], [0, 5]))
    with pytest.raises(cpnsa.ArgumentError, match="padding between tokens in row 0"):
        cpnsa.torch.bounds_of_mask(torch.tensor([[1, 0, 1]]))
    with pytest.raises(cpnsa.ArgumentError, match="expected one of them"):
        layer(x, [0, 30], position_ids=positions)


def test_mistakes_are_refused_by_name():
    config = cpnsa.Config(**small)
    q, k, v, gate = inputs_of(30)
    plan = cpnsa.torch.Plan(config, [0, 30], dtype=torch.float64)
    for name, given in (("q_cmp", {"q_cmp": q}), ("sink_slc", {"sinks": torch.zeros(4, dtype=torch.float64)}),
                        ("given_selection|inputs.selected",
                         {"given_selection": torch.zeros(30, 2, 3, dtype=torch.int32)}),
                        ("summary_rotation", {"summary_rotation": torch.zeros(3)}),
                        ("log_sum_exp", {"log_sum_exp": (None, None)})):
        with pytest.raises(cpnsa.ArgumentError, match=name):
            cpnsa.torch.attention(plan, q, k, v, gate, **given)
    with pytest.raises(cpnsa.ArgumentError, match="attention: found 'dense'"):
        layer_of(attention="dense")
    with pytest.raises(cpnsa.ArgumentError, match="summaries: found 'both'"):
        layer_of(summaries="both")


@pytest.mark.skipif(not operators, reason="operators need PyTorch 2.4")
def test_flops_are_counted_in_eager_mode():
    from torch.utils.flop_counter import FlopCounterMode

    config = cpnsa.Config(**small)
    q, k, v, gate = inputs_of(30)
    plan = cpnsa.torch.Plan(config, [0, 30], dtype=torch.float64)
    with FlopCounterMode(display=False) as counter:
        cpnsa.torch.attention(plan, q, k, v, gate, operator=True).sum().backward()
    pairs = sum(max(0, (t - 4 + 1) // 2 + 1) if t >= 3 else 0 for t in range(30))
    selected = sum(min(t + 1, (3 - 1) * 4 + t % 4 + 1) for t in range(30))
    window = sum(min(t + 1, 5) for t in range(30))
    forward = 2 * 4 * ((pairs + selected + window) * (4 + 3) + pairs * 4)
    counted = counter.get_flop_counts()["Global"]
    assert counted[torch.ops.cpnsa.attention_forward] == forward
    assert counted[torch.ops.cpnsa.attention_backward] == 2 * 4 * (pairs + selected + window) * (3 * 4 + 2 * 3)
