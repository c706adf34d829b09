"""What the package says about itself and its kernels."""

import json
import pickle

import numpy as np
import pytest

import cpnsa
import cpnsa.numpy

config = cpnsa.Config(num_q_heads=64, num_kv_heads=4, head_dim_qk=128, head_dim_v=128)


def test_info_has_the_version_and_the_build():
    facts = cpnsa.info()
    assert facts["version"] == cpnsa.__version__
    assert facts["commit"] and facts["compiler"] and facts["cpu_arch"]
    assert facts["has_cuda"] is cpnsa.has_cuda
    assert isinstance(facts["gpus"], list) and isinstance(facts["libraries"], dict)


def test_kernels_of_a_layer():
    if not cpnsa.has_cuda:
        with pytest.raises(cpnsa.UnsupportedError, match="built without CUDA"):
            cpnsa.kernels_of(config)
        return
    assert {entry["kernels"] for entry in cpnsa.kernels_of(config).values()} == {"hopper"}
    assert {entry["kernels"] for entry in cpnsa.kernels_of(config, capability=80).values()} == {"portable"}


def test_the_record_of_a_step():
    def step(timing):
        layer = cpnsa.numpy.Attention(cpnsa.Config(num_q_heads=2, num_kv_heads=1, head_dim_qk=8, head_dim_v=8,
                                                   compressor="mean"), cu_seqlens=[0, 300], timing=timing)
        q, k, gate = (np.ones((300, *shape), np.float32) for shape in ((2, 8), (1, 8), (2, 3)))
        _, saved = layer.forward(q, k, k, gate)
        layer.backward(q, saved)
        return layer.record()

    record = pickle.loads(pickle.dumps(step(True)))
    facts = record.to_dict()
    assert (record.rank, record.ranks, facts["rows"]) == (0, 1, 300)
    assert {"compress", "selected", "window_backward"} <= {span["stage"] for span in facts["spans"]}
    assert 0 < facts["stage_seconds"]["selected"] < record.seconds
    events = json.loads(cpnsa.chrome_trace([record]))["traceEvents"]
    assert len([event for event in events if event["ph"] == "X"]) == len(facts["spans"])
    assert step(False).to_dict()["spans"] == []
    with pytest.raises(cpnsa.ArgumentError, match="step record: found 3 bytes"):
        cpnsa.StepRecord.__new__(cpnsa.StepRecord).__setstate__(b"abc")


def test_configs_are_copied_with_changes():
    wide = config.replace(head_dim_qk=192, window=256)
    assert (wide.head_dim_qk, wide.window, wide.head_dim_v, wide.num_q_heads) == (192, 256, 128, 64)
    assert (wide.compress_hidden_k, wide.compress_hidden_v) == (384, 256)
    assert config.head_dim_qk == 128 and config.window == 512
    assert config.replace() == config
    assert config.replace(compress_hidden_k=8).replace(head_dim_qk=64).compress_hidden_k == 8
    with pytest.raises(TypeError, match="windw: found an unknown key, expected window"):
        config.replace(windw=3)


def test_presets():
    paper = cpnsa.Config.preset("paper-27b")
    assert (paper.num_q_heads, paper.num_kv_heads, paper.head_dim_qk, paper.head_dim_v) == (64, 4, 192, 128)
    assert cpnsa.Config.preset("small") == cpnsa.Config(num_q_heads=16, num_kv_heads=1, head_dim_qk=64, head_dim_v=64)
    with pytest.raises(cpnsa.ConfigError, match="preset: found huge, expected one of paper-27b, wide-128, small"):
        cpnsa.Config.preset("huge")


def test_forecasts_have_the_bytes_of_a_layer():
    small = cpnsa.Config(num_q_heads=2, num_kv_heads=1, head_dim_qk=8, head_dim_v=8)
    forecast = cpnsa.forecast(small, [0, 300, 1000], 2, dtype="bf16", exchange="gather")
    assert forecast["ranks"] == 2 and forecast["exchange"] == "gather" and len(forecast["of_ranks"]) == 2
    assert forecast["of_ranks"][0]["rows"] + forecast["of_ranks"][1]["rows"] == 1000
    assert sum(forecast["of_ranks"][1]["saved"].values()) == forecast["of_ranks"][1]["saved_bytes"]
    assert forecast["forward_seconds"] > 0 and forecast["scratch_estimated"]
    with pytest.raises(cpnsa.ArgumentError, match="GPU: found b200, expected h100 or h200"):
        cpnsa.forecast(small, [0, 1000], 2, gpu="b200")


def test_forecasts_of_decoding_have_the_bytes_of_a_cache():
    small = cpnsa.Config(num_q_heads=2, num_kv_heads=1, head_dim_qk=8, head_dim_v=16)
    forecast = cpnsa.forecast_decode(small, 1, length=1000, sequences=2, dtype="f32")
    rank = forecast["of_ranks"][0]
    # 16 pages of 64 tokens hold 1000 tokens; all branches share them.
    assert rank["cache"]["slc"] == 2 * 16 * 64 * (8 + 16) * 4
    assert sum(rank["cache"].values()) == rank["cache_bytes"]
    assert forecast["messages"] == 0 and forecast["seconds"] > 0 and forecast["device_counted"] is cpnsa.has_cuda
    assert cpnsa.forecast_decode(small, 4, length=1000)["messages"] == 3
