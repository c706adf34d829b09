"""The NumPy interface against the golden cases, and its threads of ranks."""

import json
import pathlib
import threading

import numpy as np
import pytest

import cpnsa
import cpnsa.numpy
from cpnsa import _core

cases = sorted(path for path in (pathlib.Path(__file__).parent.parent / "golden" / "cases").iterdir() if path.is_dir())
types = {"f64": np.float64, "f32": np.float32}


class Case:
    def __init__(self, path, dtype):
        arrays = {file.stem: np.load(file) for file in (path / "in").glob("*.npy")}
        self.cu_seqlens = arrays.pop("cu_seqlens", np.array([0, len(arrays["q"])])).tolist()
        self.arrays = {name: array.astype(types[dtype]) for name, array in arrays.items()}
        keys = json.loads((path / "in" / "config.json").read_text())
        for side in "kv":
            if f"compress_{side}_w1" in arrays:
                keys[f"compress_hidden_{side}"] = arrays[f"compress_{side}_w1"].shape[-1]
        self.config = cpnsa.Config(**keys)
        self.expected = {file.stem: np.load(file) for file in (path / "expected").glob("*.npy")}
        self.margin = self.expected.pop("margin")

    def inputs(self, rows=slice(None)):
        def branches(name):
            if name in self.arrays:
                return self.arrays[name][rows]
            return [self.arrays[f"{name}_{branch}"][rows] for branch in ("cmp", "slc", "win")]

        def compressor(name):
            return {key[len(name) + 1:]: array for key, array in self.arrays.items() if key.startswith(name + "_")}

        return (self.arrays["q"][rows], branches("k"), branches("v"), self.arrays["gate"][rows],
                compressor("compress_k"), compressor("compress_v"))

    def run(self, attention, rows=slice(None)):
        """Every result of forward and backward by its file's name."""
        config = self.config
        selected = np.full((attention.rows, config.num_kv_heads, config.select_count), -9, np.int32)
        out = np.full((attention.rows, config.num_q_heads, config.head_dim_v), np.nan, self.arrays["q"].dtype)
        returned, saved = attention.forward(*self.inputs(rows), out=out, selected=selected)
        assert returned is out
        gradients = attention.backward(self.arrays["dout"][rows], saved)
        return {"out": out, "selected": selected, **{"d" + name: value for name, value in gradients.items()}}


def scale_of(case, name):
    """What rounding is relative to where a tensor's own norm is zero: that of all gradients of compressors."""
    if not name.startswith("dcompress"):
        return 0.0
    return max(np.linalg.norm(expected) for other, expected in case.expected.items() if other.startswith("dcompress"))


def is_close(found, expected, scale, tolerance):
    assert np.isfinite(found).all()
    return np.linalg.norm(found.astype(np.float64) - expected) <= tolerance * max(np.linalg.norm(expected), scale)


@pytest.mark.parametrize("path", cases, ids=lambda path: path.name)
@pytest.mark.parametrize("dtype, tolerance", [("f64", 1e-7), ("f32", 4e-6)])  # the files hold f64 results as f32
def test_golden(path, dtype, tolerance):
    case = Case(path, dtype)
    found = case.run(cpnsa.numpy.Attention(case.config, cu_seqlens=case.cu_seqlens, dtype=dtype))
    assert set(case.expected) <= set(found)
    for name, expected in case.expected.items():
        if name == "selected":
            wrong = (found[name] != expected).any(-1) & (case.margin > 1e-8)
            assert not wrong.any()
        else:
            assert is_close(found[name], expected, scale_of(case, name), tolerance), name


@pytest.mark.parametrize("partition", ["contiguous", "zigzag", "zigzag_per_document"])
def test_threads_of_ranks(partition):
    case = Case(cases[-1], "f64")
    ranks = 3
    partition = getattr(cpnsa.Partition, partition)(case.cu_seqlens, case.config.select_block, ranks)
    communicators = cpnsa.threads_communicators(ranks)
    results, failures = [None] * ranks, []

    def rank_of(rank):
        try:
            attention = cpnsa.numpy.Attention(case.config, partition, communicator=communicators[rank], dtype="f64")
            rows = np.from_dlpack(partition.global_rows(rank))
            results[rank] = rows, case.run(attention, rows)
        except Exception as error:  # the others are released, and the test fails
            communicators[rank].abort(str(error))
            failures.append(error)

    threads = [threading.Thread(target=rank_of, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    for name, expected in case.expected.items():
        parts = [result[name] for _, result in results]
        if name.startswith("dcompress"):  # each rank has its share
            found = sum(parts)
        else:
            found = np.full(expected.shape, np.nan)
            for (rows, _), part in zip(results, parts):
                found[rows] = part
        if name == "selected":
            assert not ((found != expected).any(-1) & (case.margin > 1e-8)).any()
        else:
            assert is_close(found, expected, scale_of(case, name), 1e-7), name


def test_half_precision_and_separate_results():
    config = cpnsa.Config(num_q_heads=2, num_kv_heads=1, head_dim_qk=8, head_dim_v=8, compressor="mean", gate="values")
    random = np.random.default_rng(0)
    T = 130
    arrays = [random.standard_normal(shape) for shape in ((T, 2, 8), (T, 1, 8), (T, 1, 8), (T, 2, 3))]
    exact, _ = cpnsa.numpy.Attention(config, cu_seqlens=[0, T], dtype="f64").forward(*arrays)
    half = cpnsa.numpy.Attention(config, cu_seqlens=[0, T], dtype="f16", backward=False)
    out, saved = half.forward(*[array.astype(np.float16) for array in arrays])
    assert saved is None and out.dtype == np.float16
    assert np.linalg.norm(out - exact) < 2e-3 * np.linalg.norm(exact)


def test_read_only_inputs_are_read():
    case = Case(cases[0], "f64")
    for array in case.arrays.values():
        array.setflags(write=False)
    attention = cpnsa.numpy.Attention(case.config, cu_seqlens=case.cu_seqlens, dtype="f64")
    assert is_close(case.run(attention)["out"], case.expected["out"], 0, 1e-7)


def test_one_array_in_several_places():
    """Has a gradient for each of them."""
    config = cpnsa.Config(num_q_heads=2, num_kv_heads=2, head_dim_qk=8, head_dim_v=8, compressor="mean")
    random = np.random.default_rng(0)
    x, gate, dout = (random.standard_normal((100, 2, width)) for width in (8, 3, 8))
    layer = cpnsa.numpy.Attention(config, cu_seqlens=[0, 100], dtype="f64")
    found = layer.backward(dout, layer.forward(x, x, [x, x, x], gate)[1])
    expected = layer.backward(dout, layer.forward(x.copy(), x.copy(), [x.copy() for _ in range(3)], gate)[1])
    assert set(found) == set(expected)
    for name in expected:
        assert np.array_equal(found[name], expected[name]), name


class Exporting:
    """Hands out another array by DLPack each time, after running what a test wants run."""

    def __init__(self, array, first=lambda: None):
        self.array, self.first = array, first

    def __dlpack__(self, **options):
        self.first()
        return self.array.copy().__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_arrays_made_for_the_call():
    case = Case(cases[0], "f64")
    layer = cpnsa.numpy.Attention(case.config, cu_seqlens=case.cu_seqlens, dtype="f64", backward=False)
    q, k, v, gate, compress_k, compress_v = case.inputs()
    out, _ = layer.forward(Exporting(q), k, v, Exporting(gate), compress_k, compress_v)
    assert is_close(out, case.expected["out"], 0, 1e-7)
    with pytest.raises(cpnsa.ArgumentError, match="closed"):
        layer.forward(Exporting(q, layer.close), k, v, gate, compress_k, compress_v)


def test_options_are_those_of_the_library():
    expected = dict(_core.option_defaults)
    del expected["dtype"]  # an argument of its own
    assert cpnsa.AttentionOptions().to_dict() == expected


@pytest.mark.parametrize("option, value, message", [
    ("backward", "yes", "backward: found 'yes', expected True or False"),
    ("exchange", 3, "exchange: found 3, expected a string"),
    ("exchange", "fetsch", "exchange: found 'fetsch', expected one of auto, fetch, gather"),
    ("gradient_dtype", "f8", "gradient_dtype: found 'f8', expected one of"),
])
def test_bad_options_are_named(option, value, message):
    config = cpnsa.Config(num_q_heads=1, num_kv_heads=1, head_dim_qk=8, head_dim_v=8)
    with pytest.raises(cpnsa.ArgumentError, match=message):
        cpnsa.numpy.Attention(config, cu_seqlens=[0, 64], **{option: value})


def test_partition():
    partition = cpnsa.Partition.zigzag_per_document([0, 512, 768], 64, 2)
    assert partition.ranges(0) == [(0, 128), (384, 576), (704, 768)]
    rows = [np.from_dlpack(partition.global_rows(rank)) for rank in range(2)]
    assert sorted(np.concatenate(rows)) == list(range(768))
    assert partition.local_tokens(1) == len(rows[1])
    again = cpnsa.Partition.custom([0, 512, 768], 64, [partition.ranges(0), partition.ranges(1)])
    assert again.ranges(1) == partition.ranges(1)


def test_statistics():
    case = Case(cases[0], "f32")
    attention = cpnsa.numpy.Attention(case.config, cu_seqlens=case.cu_seqlens, dtype="f32")
    case.run(attention)
    statistics = attention.statistics()
    assert statistics["exchange"] == "fetch" and statistics["bytes_received"]["blocks"] == 0
    assert statistics["workspace_bytes"] > 0
