"""Prefill and decoding of the PyTorch layer over paged caches, against its forward over whole sequences."""

import threading

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import cpnsa  # noqa: E402
import cpnsa.torch  # noqa: E402

small = dict(num_q_heads=4, num_kv_heads=2, head_dim_qk=4, head_dim_v=3, compress_block=4, compress_stride=2,
             select_block=4, select_count=3, init_blocks=1, local_blocks=1, window=5, compress_hidden_k=6,
             compress_hidden_v=6)
hidden = 16


def layer_of(compressor="mlp", **options):
    torch.manual_seed(3)
    layer = cpnsa.torch.NativeSparseAttention(hidden, cpnsa.Config(**small, compressor=compressor), dtype=torch.float64,
                                              **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return layer


def cache_of(layer, sequences, max_length, **options):
    return cpnsa.torch.KvCache(layer.config, sequences, max_length, dtype=torch.float64, branch_kv=layer.branches == 3,
                               **options)


def rotary(x, positions):
    angle = positions[:, None, None].to(x.dtype) * 0.1
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:2 * half]
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos(), x[..., 2 * half:]], -1)


def expected_of(layer, x):
    with torch.no_grad():
        return layer(x)


@pytest.mark.parametrize("compressor", ["mean", "linear", "mlp"])
@pytest.mark.parametrize("branch_kv", [False, True])
def test_prefill_and_decoding_give_the_rows_of_the_forward(compressor, branch_kv):
    layer = layer_of(compressor, branch_kv=branch_kv, rotary=rotary)
    x = torch.randn(3, 41, hidden, dtype=torch.float64)
    expected = expected_of(layer, x)
    cache = cache_of(layer, 3, 41, seed=5)
    rows = [layer(x[:, :20], cache=cache), layer(x[:, 20:23], cache=cache)]
    rows += [layer(x[:, i:i + 1], cache=cache) for i in range(23, 41)]
    found = torch.cat(rows, 1)
    assert cache.lengths == [41] * 3
    assert cache.statistics()["steps"] == 20
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def test_a_step_of_several_layers_with_ragged_counts():
    layers = [layer_of(), layer_of("mean")]
    torch.manual_seed(1)
    x = torch.randn(2, 30, hidden, dtype=torch.float64)
    expected = expected_of(layers[1], expected_of(layers[0], x))
    cache = cache_of(layers[0], 2, 30, layers=1)
    other = cache_of(layers[1], 2, 30, layers=1)
    found = torch.zeros_like(x)
    begin = [0, 0]
    for counts in ([7, 0], [1, 12], [10, 1], [12, 17]):
        rows = torch.cat([x[i, begin[i]:begin[i] + counts[i]] for i in range(2)])
        with cache.step(counts) as step:
            y = layers[0](rows, cache=step[0])
        with other.step(counts) as step:
            y = layers[1](y, cache=step[0])
        for i, part in enumerate(y.split(counts)):
            found[i, begin[i]:begin[i] + counts[i]] = part
            begin[i] += counts[i]
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def test_layers_of_one_configuration_share_a_step():
    layers = [layer_of(), layer_of()]
    x = torch.randn(2, 17, hidden, dtype=torch.float64)
    expected = expected_of(layers[1], expected_of(layers[0], x))
    cache = cache_of(layers[0], 2, 17, layers=2)
    rows = []
    for i in range(17):
        y = x[:, i:i + 1]
        with cache.step() as step:
            for index, layer in enumerate(layers):
                y = layer(y, cache=step[index])
        rows.append(y)
    torch.testing.assert_close(torch.cat(rows, 1), expected, rtol=1e-11, atol=1e-12)


def test_cut_fork_and_reorder():
    layer = layer_of()
    x = torch.randn(2, 40, hidden, dtype=torch.float64)
    y = torch.cat([x[0, :21], x[1, 21:]])  # the first sequence's beginning, the second one's end
    expected = expected_of(layer, torch.stack([x[0], y]))
    cache = cache_of(layer, 2, 40)
    with cache.step([25, 0]) as step:
        layer(x[0, :25], cache=step[0])
    cache.cut(0, 21)
    cache.fork(0, 1)
    assert cache.lengths == [21, 21]
    ends = torch.stack([x[0, 21:], y[21:]])
    first = layer(ends[:, :4], cache=cache)
    cache.reorder([1, 0])
    second = layer(ends[:, 4:].flip(0), cache=cache).flip(0)
    torch.testing.assert_close(torch.cat([first, second], 1), expected[:, 21:], rtol=1e-11, atol=1e-12)
    cache.release(1)
    assert cache.lengths == [40, 0]
    cache.reorder([0, 0])
    assert cache.lengths == [40, 40]


def test_reordered_sequences_share_what_they_have_in_common():
    layer = layer_of(branch_kv=False)
    x = torch.randn(3, 24, hidden, dtype=torch.float64)
    cache = cache_of(layer, 3, 24)
    layer(x[:, :13], cache=cache)
    cache.reorder([2, 2, 0])
    found = layer(x[:, 13:], cache=cache)
    whole = torch.cat([x[[2, 2, 0], :13], x[:, 13:]], 1)
    torch.testing.assert_close(found, expected_of(layer, whole)[:, 13:], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("replicate_summaries", [False, True])
def test_ranks_share_the_sequences(replicate_summaries):
    x = torch.randn(2, 33, hidden, dtype=torch.float64)
    layer = layer_of()
    expected = expected_of(layer, x)
    communicators = cpnsa.threads_communicators(3)
    layers = [layer_of() for _ in range(3)]  # before the threads, which share PyTorch's random numbers
    found, problems = [None] * 3, []

    def rank(index):
        try:
            own = layers[index]
            cache = cache_of(own, 2, 33, group=communicators[index], replicate_summaries=replicate_summaries,
                             checked=index >= 0)
            rows = [own(x[:, :15], cache=cache)] + [own(x[:, i:i + 2], cache=cache) for i in range(15, 33, 2)]
            found[index] = torch.cat(rows, 1)
            statistics = cache.statistics()
            assert statistics["messages"] == statistics["steps"] * (1 if replicate_summaries else 3)
            assert statistics["bytes_received"]["parts"] > 0
        except BaseException as problem:  # reported by the test's thread
            problems.append(problem)
            communicators[index].abort(str(problem))

    threads = [threading.Thread(target=rank, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    for one in found:
        torch.testing.assert_close(one, expected, rtol=1e-11, atol=1e-12)
        assert torch.equal(one, found[0])


def test_selected_blocks_and_log_sum_exps():
    config = cpnsa.Config(**small)
    plan = cpnsa.torch.Plan(config, [0, 30], dtype=torch.float64)
    parameters = [cpnsa.torch.Compressor(config, dim, 6, dtype=torch.float64).tensors() for dim in (4, 3)]
    q, k, v, gate = (torch.randn(30, *shape, dtype=torch.float64) for shape in ((4, 4), (2, 4), (2, 3), (4, 3)))
    expected = torch.empty(30, 2, 3, dtype=torch.int32)
    out = cpnsa.torch.attention(plan, q, k, v, gate, *parameters, selected=expected)
    cache = cpnsa.torch.KvCache(config, 1, 30, dtype=torch.float64, branch_kv=False)
    selected = torch.empty(30, 2, 3, dtype=torch.int32)
    sums = torch.empty(3, 30, 4, dtype=torch.float64)
    with cache.step(30) as step:
        found = step[0].attention(q, k, v, gate, *parameters, selected=selected, log_sum_exp=sums)
    torch.testing.assert_close(found, out.detach(), rtol=1e-11, atol=1e-12)
    assert torch.equal(selected, expected)
    assert torch.isinf(sums[0, :3]).all() and torch.isfinite(sums[0, 3:]).all() and torch.isfinite(sums[1:]).all()


def test_errors():
    layer = layer_of()
    with pytest.raises(cpnsa.ArgumentError, match="page: found 6 tokens, expected a multiple of select_block 4"):
        cache_of(layer, 1, 8, page=6)
    cache = cache_of(layer, 2, 8)
    x = torch.zeros(2, 9, hidden, dtype=torch.float64)
    with pytest.raises(cpnsa.ArgumentError, match="length: found 9 for slot 0, expected 0 to 8, max_length"):
        layer(x, cache=cache)
    assert cache.lengths == [0, 0]
    layer(x[:, :3], cache=cache)
    with pytest.raises(cpnsa.ArgumentError, match="expected 2 rows of 16"):
        with cache.step() as step:
            layer(x, cache=step[0])
    assert cache.lengths == [3, 3]
    with pytest.raises(cpnsa.ArgumentError, match="counts: found"):
        cache.step([1])
    with pytest.raises(cpnsa.ArgumentError, match="layer: found 1, expected 0 to 0"):
        cache.step()[1]
    with pytest.raises(cpnsa.ArgumentError, match="cache: found it with cu_seqlens"):
        layer(x[0], [0, 9], cache=cache)
    with pytest.raises(cpnsa.ArgumentError, match="cache: found dict"):
        layer(x, cache={})
    with pytest.raises(cpnsa.ArgumentError, match="expected 0 to 3, the sequence's"):
        cache.cut(0, 4)


@pytest.mark.skipif(not hasattr(torch, "compile"), reason="this PyTorch has no torch.compile")
def test_a_compiled_model_decodes():
    layer = layer_of()
    x = torch.randn(1, 12, hidden, dtype=torch.float64)
    expected = expected_of(layer, x)
    cache = cache_of(layer, 1, 12)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x, cache):
            return self.layer(x * 1.0, cache=cache)

    compiled = torch.compile(Model(), backend="eager")
    rows = [compiled(x[:, :6], cache)] + [compiled(x[:, i:i + 1], cache) for i in range(6, 12)]
    torch.testing.assert_close(torch.cat(rows, 1), expected, rtol=1e-11, atol=1e-12)
