"""What is wrong is an exception with the library's message, never a crash, and leaves nothing half written."""

import re
import threading

import numpy as np
import pytest

import cpnsa
import cpnsa.numpy

T = 100
keys = dict(num_q_heads=4, num_kv_heads=2, head_dim_qk=8, head_dim_v=6, compressor="mean")


def arrays(dtype=np.float32):
    random = np.random.default_rng(1)
    shapes = {"q": (T, 4, 8), "k": (T, 2, 8), "v": (T, 2, 6), "gate": (T, 4, 3)}
    return {name: random.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def attention(**options):
    return cpnsa.numpy.Attention(cpnsa.Config(**keys), cu_seqlens=[0, T], **options)


@pytest.mark.parametrize("change, message", [
    (dict(num_kv_heads=3), "num_kv_heads"),
    (dict(compress_stride=5), "compress_stride"),
    (dict(compressor="max"), "compressor: found 'max', expected one of mean, linear, mlp"),
    (dict(gate="soft"), "gate: found 'soft'"),
])
def test_config(change, message):
    with pytest.raises((cpnsa.ConfigError, cpnsa.ArgumentError), match=message) as error:
        cpnsa.Config(**{**keys, **change})
    assert isinstance(error.value, ValueError) and isinstance(error.value, cpnsa.Error)


@pytest.mark.parametrize("change, message", [
    (dict(windw=12), r"windw: found an unknown key, expected window, the nearest of num_q_heads, num_kv_heads, .*v$"),
    (dict(compress_hidden=64), "compress_hidden: found an unknown key, expected compress_hidden_k, the nearest of"),
    (dict(softcap=30.0), r"softcap: found 30.0, expected none: scores have no soft cap \(docs/algorithm.md\)"),
    (dict(logits_soft_cap=0), "logits_soft_cap: found 0, expected none: scores have no soft cap"),
    (dict(dropout=0.1), "dropout: found an unknown key, expected one of num_q_heads, num_kv_heads"),
    (dict(window="wide"), "window: found 'wide' of type str, expected a whole number"),
    (dict(window=1.5), "window: found 1.5 of type float, expected a whole number"),
    (dict(softmax_scale="1"), "softmax_scale: found '1' of type str, expected a number or None"),
    (dict(compressor=3), "compressor: found 3 of type int, expected a string"),
])
def test_config_keywords(change, message):
    with pytest.raises(TypeError, match=message):
        cpnsa.Config(**{**keys, **change})


def test_config_names_a_missing_key():
    with pytest.raises(TypeError, match="head_dim_v: found nothing, expected a whole number"):
        cpnsa.Config(num_q_heads=4, num_kv_heads=2, head_dim_qk=8)
    with pytest.raises(TypeError):
        cpnsa.Config(4, 2, 8, 6)


def test_config_defaults():
    config = cpnsa.Config(num_q_heads=4, num_kv_heads=2, head_dim_qk=8, head_dim_v=6)
    assert (config.compress_block, config.select_count, config.window, config.compressor) == (32, 16, 512, "mlp")
    assert (config.compress_hidden_k, config.compress_hidden_v) == (16, 12)
    assert cpnsa.Config(**config.to_dict()) == config
    assert list(config.to_dict()) == [name for name in re.findall(r"(\w+): ", cpnsa.Config.__init__.__doc__)
                                      if hasattr(config, name)]


def test_config_is_fixed_and_typed():
    config = cpnsa.Config(**keys)
    with pytest.raises(AttributeError):
        config.window = 3
    with pytest.raises(TypeError):
        cpnsa.Config(**{**keys, "window": "wide"})
    assert config == cpnsa.Config(**keys) and hash(config) == hash(cpnsa.Config(**keys))
    assert config != cpnsa.Config(**{**keys, "window": 9})


@pytest.mark.parametrize("name, wrong, message", [
    ("q", lambda a: a.astype(np.float64), r"q: found f64 \[100, 4, 8\], expected f32 \[100, 4, 8\]"),
    ("q", lambda a: a.astype(np.int32), "q: found elements of 32 bits"),
    ("k", lambda a: a[:-1], r"k_cmp: found f32 \[99, 2, 8\]"),
    ("v", lambda a: a[:, :, :-1], "v_cmp: found a tensor that is not contiguous"),
    ("v", lambda a: np.asfortranarray(a), "v_cmp: found a tensor that is not contiguous"),
    ("gate", lambda a: a[::2], "gate: found a tensor that is not contiguous"),
    ("q", lambda a: a.tolist(), "q: found an object of type list"),
    ("q", lambda a: None, "q: found no tensor|q: found none|q: found"),
    ("k", lambda a: [a, a], "k: found 2 tensors, expected 1 or 3"),
    ("gate", lambda a: a.reshape(1, 1, T, 4, 3), "gate: found 5 dimensions"),
])
def test_inputs(name, wrong, message):
    given = arrays()
    given[name] = wrong(given[name])
    out = np.full((T, 4, 6), np.nan, np.float32)
    layer = attention()
    with pytest.raises(cpnsa.ArgumentError, match=message):
        layer.forward(**given, out=out)
    assert np.isnan(out).all()
    returned, _ = layer.forward(**arrays(), out=out)  # the layer goes on
    assert np.isfinite(returned).all()


def test_outputs():
    layer = attention()
    frozen = np.zeros((T, 4, 6), np.float32)
    frozen.setflags(write=False)
    for out in (np.zeros((T, 4, 8), np.float32), np.zeros((T, 4, 6)), frozen, "out"):
        with pytest.raises(cpnsa.ArgumentError, match="out: found"):
            layer.forward(**arrays(), out=out)
    for selected in (np.zeros((T, 2, 16)), np.zeros((T, 2, 3), np.int32)):
        with pytest.raises(cpnsa.ArgumentError, match="selected: found"):
            layer.forward(**arrays(), selected=selected)


def test_compressor_parameters():
    with pytest.raises(cpnsa.ArgumentError, match="compress_k_w1: found .*mean"):
        attention().forward(**arrays(), compress_k={"w1": np.zeros((2, 256, 4), np.float32)})
    with pytest.raises(cpnsa.ArgumentError, match="compress_v: found 'weights'"):
        attention().forward(**arrays(), compress_v={"weights": 1})


def test_backward():
    layer = attention()
    _, saved = layer.forward(**arrays())
    with pytest.raises(cpnsa.ArgumentError, match="dout: found f32"):
        layer.backward(np.zeros((T, 4, 5), np.float32), saved)
    with pytest.raises(cpnsa.ArgumentError, match="saved: found NoneType"):
        layer.backward(np.zeros((T, 4, 6), np.float32), None)
    fresh = cpnsa.numpy.Saved(saved.inputs, saved.indices, cpnsa.Saved(), saved.memory)
    with pytest.raises(cpnsa.ArgumentError, match="saved: found none"):
        layer.backward(np.zeros((T, 4, 6), np.float32), fresh)
    small = cpnsa.numpy.Saved(saved.inputs, saved.indices, saved.state, cpnsa.cpu_device().allocate(16))
    with pytest.raises(cpnsa.ArgumentError, match="saved: found"):
        layer.backward(np.zeros((T, 4, 6), np.float32), small)
    with pytest.raises(cpnsa.ArgumentError, match="saved: found (a buffer|that) of another"):
        attention().backward(np.ones((T, 4, 6), np.float32), saved)
    assert np.isfinite(layer.backward(np.ones((T, 4, 6), np.float32), saved)["q"]).all()


def test_use_after_close():
    layer = attention()
    _, saved = layer.forward(**arrays())
    layer.close()
    layer.close()
    with pytest.raises(cpnsa.ArgumentError, match="closed"):
        layer.forward(**arrays())
    with pytest.raises(cpnsa.ArgumentError, match="closed"):
        layer.backward(np.zeros((T, 4, 6), np.float32), saved)
    with pytest.raises(cpnsa.ArgumentError, match="closed"):
        layer.statistics()
    communicator = cpnsa.threads_communicators(1)[0]
    layer = attention(communicator=communicator)
    communicator.close()
    with pytest.raises(cpnsa.ArgumentError, match="closed"):
        communicator.rank  # noqa: B018
    with pytest.raises(cpnsa.ArgumentError, match="communicator: found one that was closed"):
        layer.forward(**arrays())


def test_partition():
    for bad in (lambda: cpnsa.Partition.zigzag([0, 10], 64, 0), lambda: cpnsa.Partition.zigzag([1, 10], 64, 1),
                lambda: cpnsa.Partition.contiguous([0, 10, 5], 64, 1), lambda: cpnsa.Partition.zigzag([], 64, 1),
                lambda: cpnsa.Partition.custom([0, 128], 64, [[(0, 63)], [(63, 128)]]),
                lambda: cpnsa.Partition.zigzag([0, 10], 64, 2).ranges(2)):
        with pytest.raises(cpnsa.ArgumentError):
            bad()
    with pytest.raises(cpnsa.ArgumentError, match="partition: found 2 ranks, expected 1"):
        cpnsa.numpy.Attention(cpnsa.Config(**keys), cpnsa.Partition.zigzag([0, T], 64, 2))
    with pytest.raises(cpnsa.ArgumentError, match="both or neither"):
        cpnsa.numpy.Attention(cpnsa.Config(**keys))
    with pytest.raises(cpnsa.ArgumentError, match="dtype: found 'bf16'"):
        attention(dtype="bf16")


@pytest.mark.skipif(cpnsa.has_cuda, reason="this build has CUDA")
def test_no_cuda():
    with pytest.raises(cpnsa.UnsupportedError, match="built without CUDA"):
        cpnsa.cuda_device()


def on_ranks(ranks, body):
    """What each rank's thread raised, or returned."""
    communicators, results = cpnsa.threads_communicators(ranks), [None] * ranks

    def run(rank):
        try:
            results[rank] = body(rank, communicators[rank])
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_ranks_that_disagree():
    def body(rank, communicator):
        config = cpnsa.Config(**{**keys, "window": 64 + rank})
        return cpnsa.numpy.Attention(config, cu_seqlens=[0, T], communicator=communicator)

    for error in on_ranks(2, body):
        assert isinstance(error, cpnsa.MismatchError) and "window" in str(error)


@pytest.mark.parametrize("change, message", [(dict(dtype="bf16"), "dtype: found 'bf16'"),
                                             (dict(exchange="maybe"), "exchange: found 'maybe'"),
                                             (dict(cu_seqlens=["a"]), "cu_seqlens: found")])
def test_one_rank_that_cannot_make_its_layer(change, message):
    def body(rank, communicator):
        communicator.set_deadline(20)
        options = {"cu_seqlens": [0, T], "communicator": communicator, **(change if rank == 1 else {})}
        with pytest.raises(cpnsa.ArgumentError, match=message) as error:
            cpnsa.numpy.Attention(cpnsa.Config(**keys), **options)
        cpnsa.numpy.Attention(cpnsa.Config(**keys), cu_seqlens=[0, T], communicator=communicator)
        return "rank 1" in str(error.value)

    assert on_ranks(2, body) == [True, False]


@pytest.mark.parametrize("wrong", ["type", "object", "branches"])
def test_one_rank_that_is_wrong(wrong):
    """Every rank learns of it, and the layer goes on."""
    def body(rank, communicator):
        layer = cpnsa.numpy.Attention(cpnsa.Config(**keys), cu_seqlens=[0, T], communicator=communicator)
        rows = np.from_dlpack(layer.partition.global_rows(rank))
        good = {name: array[rows] for name, array in arrays().items()}
        bad = dict(good)
        if rank == 1:
            bad["q"] = {"type": good["q"].astype(np.float64), "object": "no tensor", "branches": good["q"]}[wrong]
            if wrong == "branches":
                bad["k"] = [good["k"]] * 2
        try:
            layer.forward(**bad)
        except cpnsa.ArgumentError as error:
            out, _ = layer.forward(**good)
            return str(error), np.isfinite(out).all()

    for text, finite in on_ranks(2, body):
        assert ("k: found 2" if wrong == "branches" else "q: found") in text and finite


def test_one_rank_without_what_its_forward_saved():
    def body(rank, communicator):
        communicator.set_deadline(20)
        layer = cpnsa.numpy.Attention(cpnsa.Config(**keys), cu_seqlens=[0, T], communicator=communicator)
        rows = np.from_dlpack(layer.partition.global_rows(rank))
        out, saved = layer.forward(**{name: array[rows] for name, array in arrays().items()})
        with pytest.raises(cpnsa.ArgumentError, match="saved: found NoneType"):
            layer.backward(np.ones_like(out), saved if rank == 0 else None)
        return np.isfinite(layer.backward(np.ones_like(out), saved)["q"]).all()

    assert on_ranks(2, body) == [True, True]
