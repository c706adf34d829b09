"""Decoding on NumPy arrays: the golden cases by prefill and decoding, alone and over threads of ranks."""

import threading

import numpy as np
import pytest

import cpnsa
import cpnsa.numpy
from test_numpy import Case, cases


def decode(case, chunk, **options):
    """out and selected of the case's documents, which are sequences of one cache."""
    bounds = case.cu_seqlens
    lengths = np.diff(bounds)
    config = case.config
    cache = cpnsa.numpy.KvCache(config, len(lengths), int(lengths.max()), dtype="f64", shared_kv="k" in case.arrays,
                                max_tokens=chunk * len(lengths), seed=3, **options)
    out = np.full((bounds[-1], config.num_q_heads, config.head_dim_v), np.nan)
    selected = np.full((bounds[-1], config.num_kv_heads, config.select_count), -9, np.int32)
    for begin in range(0, int(lengths.max()), chunk):
        counts = np.clip(lengths - begin, 0, chunk)
        rows = np.concatenate([np.arange(first + begin, first + begin + count)
                               for first, count in zip(bounds, counts) if count > 0])
        blocks = np.empty((len(rows), *selected.shape[1:]), np.int32)
        out[rows] = cache.step(counts, *case.inputs(rows), selected=blocks)
        selected[rows] = blocks
    assert cache.lengths.tolist() == lengths.tolist()
    return out, selected, cache.statistics()


def expect(case, out, selected):
    attention = cpnsa.numpy.Attention(case.config, cu_seqlens=case.cu_seqlens, dtype="f64", backward=False)
    blocks = np.empty_like(selected)
    expected, _ = attention.forward(*case.inputs(), selected=blocks)
    assert np.array_equal(selected, blocks)
    np.testing.assert_allclose(out, expected, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(out, case.expected["out"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("path", cases, ids=lambda path: path.name)
def test_golden_cases(path):
    case = Case(path, "f64")
    out, selected, statistics = decode(case, 61)
    expect(case, out, selected)
    assert statistics["messages"] == 0


def test_ranks_are_threads():
    case = Case(cases[0], "f64")
    results, problems = [None] * 2, []

    def rank(index, communicator):
        try:
            results[index] = decode(case, 97, communicator=communicator)
        except BaseException as problem:  # reported by the test's thread
            problems.append(problem)
            communicator.abort(str(problem))

    threads = [threading.Thread(target=rank, args=arguments) for arguments in enumerate(cpnsa.threads_communicators(2))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    for out, selected, statistics in results:
        expect(case, out, selected)
        assert statistics["messages"] == 3 * statistics["steps"]


def test_cut_fork_and_errors():
    config = cpnsa.Config(num_q_heads=2, num_kv_heads=1, head_dim_qk=4, head_dim_v=4, compress_block=4,
                          compress_stride=2, select_block=4, select_count=3, window=5, compressor="mean")
    random = np.random.RandomState(5)
    q, k, v, gate = (random.randn(30, *shape) for shape in ((2, 4), (1, 4), (1, 4), (2, 3)))
    expected, _ = cpnsa.numpy.Attention(config, cu_seqlens=[0, 30], dtype="f64", backward=False).forward(q, k, v, gate)
    cache = cpnsa.numpy.KvCache(config, 2, 30, dtype="f64")
    cache.step([30, 0], q, k, v, gate)
    cache.cut(0, 21)
    cache.fork(0, 1, 17)
    rows = np.r_[21:30, 17:30]
    found = cache.step([9, 13], q[rows], k[rows], v[rows], gate[rows])
    np.testing.assert_allclose(found, expected[rows], rtol=1e-11, atol=1e-12)
    with pytest.raises(cpnsa.ArgumentError, match="length: found 31 for slot 0, expected 0 to 30, max_length"):
        cache.step([1, 0], q[:1], k[:1], v[:1], gate[:1])
    with pytest.raises(cpnsa.ArgumentError, match="counts: found"):
        cache.step([1], q[:1], k[:1], v[:1], gate[:1])
    cache.release(1)
    assert cache.lengths.tolist() == [30, 0]
    with pytest.raises(cpnsa.ArgumentError, match="expected 0 to 30, the sequence's"):
        cache.cut(0, 31)
    cache.close()
    with pytest.raises(cpnsa.ArgumentError, match="closed"):
        cache.step([0, 1], q[:1], k[:1], v[:1], gate[:1])
