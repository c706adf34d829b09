"""The library's messages in Python's logging."""

import logging

import numpy as np
import pytest

import cpnsa
import cpnsa.numpy


def make_layer():
    config = cpnsa.Config(num_q_heads=2, num_kv_heads=1, head_dim_qk=8, head_dim_v=8, compressor="mean")
    return cpnsa.numpy.Attention(config, cu_seqlens=np.array([0, 100]))


def test_messages_reach_the_logger_that_the_level_lets_through(caplog):
    with caplog.at_level(logging.DEBUG, logger="cpnsa"):
        make_layer()
        assert caplog.records == []
        cpnsa.set_log_level("info")
        try:
            make_layer()
        finally:
            cpnsa.set_log_level("warning")
    (record,) = caplog.records
    assert record.name == "cpnsa" and record.levelno == logging.INFO
    assert "layer 1 on cpu over threads: 100 rows" in record.getMessage()


def test_a_handler_that_raises_does_not_end_the_call(monkeypatch):
    def broken(record):
        raise ValueError("of the handler")

    monkeypatch.setattr(logging.getLogger("cpnsa"), "filter", broken)
    cpnsa.set_log_level("info")
    try:
        make_layer()
    finally:
        cpnsa.set_log_level("warning")


def test_levels_are_checked():
    with pytest.raises(cpnsa.ArgumentError, match="level: found 'loud', expected one of debug, info, warning, error"):
        cpnsa.set_log_level("loud")
