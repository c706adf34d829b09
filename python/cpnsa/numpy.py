"""Attention on NumPy arrays, on the CPU, with no other package installed.

    config = cpnsa.Config(num_q_heads=4, num_kv_heads=2, head_dim_qk=16, head_dim_v=16, compressor="mean")
    attention = cpnsa.numpy.Attention(config, cu_seqlens=[0, 300, 700], dtype="f32")
    out, saved = attention.forward(q, k, v, gate)
    gradients = attention.backward(dout, saved)  # {"q": ..., "k": ..., ...}

Ranks are threads: hand one of cpnsa.threads_communicators(P) to each.
"""

import numpy

from . import _core, tensors
from .errors import ArgumentError, Refusing
from .options import options_of

__all__ = ["Attention", "Saved"]

_types = {"f64": numpy.float64, "f32": numpy.float32, "f16": numpy.float16}


class Saved:
    """State of a forward for its backward, with the inputs of the forward."""

    def __init__(self, inputs, indices, state, memory):
        self.inputs = inputs
        self.indices = indices
        self.state = state
        self.memory = memory


class Attention:
    """One attention layer; this rank's rows of a partition, all of the sequence unless one is given.

    `options` are a cpnsa.AttentionOptions; its fields may be given by name instead."""

    def __init__(self, config, partition=None, *, cu_seqlens=None, communicator=None, dtype="f32", options=None,
                 **keywords):
        if communicator is None:
            communicator = _core.threads_communicators(1)[0]
        with Refusing(communicator):
            options = options_of(options, keywords)
            if dtype not in _types:
                raise ArgumentError(f"dtype: found {dtype!r}, expected one of {', '.join(_types)}, which NumPy has")
            if (partition is None) == (cu_seqlens is None):
                raise ArgumentError("Attention: found both or neither of partition and cu_seqlens, expected one of "
                                    "them")
            if partition is None:
                bounds = tensors.bounds_of(cu_seqlens)
                partition = _core.Partition.zigzag(bounds, config.select_block, communicator.size)
        self.config = config
        self.partition = partition
        self._device = _core.cpu_device()
        self.options = options
        self._backward = options.backward
        self._attention = _core.Attention(
            config, partition, self._device, communicator, dtype=dtype, **options.to_dict())
        self.rows = self._attention.rows
        self._type = _types[dtype]
        self._accumulate = numpy.float64 if dtype == "f64" else numpy.float32
        self._workspace = self._device.allocate(self._attention.workspace_bytes)

    def forward(self, q, k, v, gate, compress_k=None, compress_v=None, *, out=None, selected=None):
        """Returns out [rows, H, dv], and what backward() wants (None without a backward).

        `k` and `v` are one array [rows, G, d] or three, of the compressed, selected and window branch; `compress_k` and
        `compress_v` are dictionaries of pos, weight, w1, b1, w2, b2, as the compressor has them. `out` is written if
        given, and so is `selected`, int32 [rows, G, n].
        """
        with Refusing(self._attention):
            inputs = tensors.flat(q, k, v, gate, compress_k, compress_v)
            indices = tensors.indices(k, v, inputs)
            if out is None:
                out = numpy.empty((self.rows, self.config.num_q_heads, self.config.head_dim_v), self._type)
            state = memory = None
            if self._backward:
                state, memory = _core.Saved(), self._device.allocate(self._attention.saved_bytes)
        self._attention.forward(inputs, out, selected, state, memory, self._workspace, 0)
        return out, Saved(inputs, indices, state, memory) if self._backward else None

    def backward(self, dout, saved):
        """Gradients by name ("q", "k_cmp", ... "compress_v_b2"); "k" and "v" where branches share an array."""
        def allocate(index, tensor):
            parameter = index >= tensors.first_parameter
            return numpy.empty(numpy.shape(tensor), self._accumulate if parameter else self._type)

        with Refusing(self._attention):
            if not isinstance(saved, Saved):
                raise ArgumentError(f"saved: found {type(saved).__name__}, expected what forward() returned")
            gradients = tensors.gradients_of(saved.indices, saved.inputs, allocate)
        self._attention.backward(saved.inputs, dout, saved.state, saved.memory, gradients, self._workspace, 0)
        named = {name: gradient for name, gradient in zip(tensors.names, gradients) if gradient is not None}
        for name in ("k", "v"):
            of_branches = [named[f"{name}_{branch}"] for branch in tensors.branches]
            if all(gradient is of_branches[0] for gradient in of_branches):
                named[name] = of_branches[0]
        return named

    def statistics(self):
        return self._attention.statistics()

    def close(self):
        """Frees what the layer holds; a later call raises ArgumentError."""
        self._attention.close()
