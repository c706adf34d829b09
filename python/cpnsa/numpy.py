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

__all__ = ["Attention", "KvCache", "Saved"]

_types = {"f64": numpy.float64, "f32": numpy.float32, "f16": numpy.float16}


class Saved:
    """State of a forward for its backward, with the inputs of the forward."""

    def __init__(self, inputs, indices, state, memory, extras=None):
        self.inputs = inputs
        self.indices = indices
        self.state = state
        self.memory = memory
        self.extras = extras


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

    def forward(self, q, k, v, gate, compress_k=None, compress_v=None, *, out=None, selected=None, q_cmp=None,
                sinks=None, given_selection=None, summary_rotation=None, interleaved=False, log_sum_exp=None):
        """Returns out [rows, H, dv], and what backward() wants (None without a backward).

        `k` and `v` are one array [rows, G, d] or three, of the compressed, selected and window branch; `compress_k` and
        `compress_v` are dictionaries of pos, weight, w1, b1, w2, b2, as the compressor has them. `out` is written if
        given, and so is `selected`, int32 [rows, G, n].

        With the options of their names: `q_cmp` [rows, H, d_qk], the query of the compressed branch; `sinks` [H] or two
        of them, of the selected and the window branch; `given_selection` int32 [rows, G, n], the blocks to read.
        `summary_rotation` (cos, sin) [summaries, pairs] rotates summaries of keys, `interleaved` or by halves.
        `log_sum_exp` [rows, H], three arrays or None, are written.
        """
        with Refusing(self._attention):
            inputs = tensors.flat(q, k, v, gate, compress_k, compress_v, q_cmp, sinks)
            extras = tensors.extras_of(given_selection, summary_rotation, interleaved, log_sum_exp)
            indices = tensors.indices(k, v, inputs)
            if out is None:
                out = numpy.empty((self.rows, self.config.num_q_heads, self.config.head_dim_v), self._type)
            state = memory = None
            if self._backward:
                state, memory = _core.Saved(), self._device.allocate(self._attention.saved_bytes)
        self._attention.forward(inputs, out, selected, state, memory, self._workspace, 0, None, 0, extras)
        return out, Saved(inputs, indices, state, memory, extras) if self._backward else None

    def backward(self, dout, saved):
        """Gradients by name ("q", "k_cmp", ... "compress_v_b2"); "k" and "v" where branches share an array."""
        def allocate(index, tensor):
            parameter = index >= tensors.first_parameter
            return numpy.empty(numpy.shape(tensor), self._accumulate if parameter else self._type)

        with Refusing(self._attention):
            if not isinstance(saved, Saved):
                raise ArgumentError(f"saved: found {type(saved).__name__}, expected what forward() returned")
            gradients = tensors.gradients_of(saved.indices, saved.inputs, allocate)
        self._attention.backward(saved.inputs, dout, saved.state, saved.memory, gradients, self._workspace, 0,
                                 None, 0, saved.extras)
        named = {name: gradient for name, gradient in zip(tensors.names, gradients) if gradient is not None}
        for name in ("k", "v"):
            of_branches = [named[f"{name}_{branch}"] for branch in tensors.branches]
            if all(gradient is of_branches[0] for gradient in of_branches):
                named[name] = of_branches[0]
        return named

    def statistics(self):
        return self._attention.statistics()

    def record(self):
        """This rank's part of the last step, stage by stage, of a layer made with timing=True."""
        return self._attention.record()

    def close(self):
        """Frees what the layer holds; a later call raises ArgumentError."""
        self._attention.close()


class KvCache:
    """A layer's paged KV cache of `sequences` sequences of up to `max_length` tokens, for prefill and decoding.

    step() appends up to `max_tokens` tokens of all sequences together and returns their rows of the forward. With
    `shared_kv` the three branches have the same keys and values. With a communicator the sequences' pages are dealt out
    to its ranks, and every rank is given the same arrays. docs/inference.md describes pages and sharding."""

    def __init__(self, config, sequences, max_length, *, max_tokens=None, shared_kv=True, communicator=None,
                 dtype="f32", page=0, summary_page=0, replicate_summaries=False, checked=True, seed=None):
        if communicator is None:
            communicator = _core.threads_communicators(1)[0]
        with Refusing(communicator):
            if dtype not in _types:
                raise ArgumentError(f"dtype: found {dtype!r}, expected one of {', '.join(_types)}, which NumPy has")
        self.config, self.sequences = config, sequences
        self._device = _core.cpu_device()
        self._decoder = _core.Decoder(
            config, self._device, communicator, dtype=dtype, page=page, summary_page=summary_page,
            shared_branches=shared_kv, replicate_summaries=replicate_summaries, max_sequences=sequences,
            max_tokens=sequences * max_length if max_tokens is None else max_tokens, max_length=max_length,
            checked=checked)
        self._type = _types[dtype]
        parts = _core.cache_parts
        own = [part for part in parts if self._decoder.pages_with(part) == part]
        self._pages = [sequences * self._decoder.pages_for(part, max_length) if part in own else 0 for part in parts]
        self._allocator = _core.PageAllocator(self._decoder, *self._pages, sequences, max_length, seed)
        self._pools = {part: [numpy.empty(shape, self._type) for shape in self._decoder.pool_shapes(part, pages)]
                       for part, pages in zip(parts, self._pages) if part in own}
        self._schedule = self._device.allocate(self._decoder.schedule_bytes)
        self._workspace = self._device.allocate(self._decoder.workspace_bytes)
        self.lengths = numpy.zeros(sequences, numpy.int32)  #: the tokens of each sequence

    def step(self, counts, q, k, v, gate, compress_k=None, compress_v=None, *, out=None, selected=None,
             log_sum_exp=None):
        """Appends counts[i] tokens to sequence i: the arrays have a row for each, one sequence after another. Returns
        out [rows, H, dv]; `selected` int32 [rows, G, n] and `log_sum_exp` [3, rows, H] are written if given."""
        with Refusing(self._decoder):
            counts = numpy.asarray(counts, numpy.int32)
            if counts.shape != (self.sequences,) or counts.min() < 0:
                raise ArgumentError(f"counts: found {counts.tolist()}, expected {self.sequences} numbers of 0 or more")
            rows = int(counts.sum())
            for sequence, count in enumerate(counts):
                self._allocator.reserve(sequence, int(self.lengths[sequence] + count))
            cu_q = numpy.concatenate([[0], numpy.cumsum(counts)]).astype(numpy.int32)
            tables = [numpy.array(numpy.from_dlpack(self._allocator.table(part))) if part in self._pools else None
                      for part in _core.cache_parts]
            inputs = tensors.flat(q, k, v, gate, compress_k, compress_v)
            if out is None:
                out = numpy.empty((rows, self.config.num_q_heads, self.config.head_dim_v), self._type)
            pools = [self._pools.get(part, (None, None)) for part in _core.cache_parts]
        self._decoder.prepare(self.sequences, rows, self.sequences, None, self.lengths, cu_q, tables, self._pages,
                              self._schedule, 0)
        cache = [keys for keys, _ in pools[:3]] + [values for _, values in pools[:3]] + list(pools[3])
        self._decoder.step(inputs, cache, out, selected, log_sum_exp, self._workspace, 0)
        self.lengths += counts
        return out

    def cut(self, sequence, length):
        """Cuts a sequence back to `length` tokens."""
        if not 0 <= length <= self.lengths[sequence]:
            raise ArgumentError(f"length: found {length}, expected 0 to {self.lengths[sequence]}, the sequence's")
        self._copy(self._allocator.cut(sequence, length))
        self.lengths[sequence] = length

    def release(self, sequence):
        """Empties a sequence, so that another one can begin."""
        self._allocator.release(sequence)
        self.lengths[sequence] = 0

    def fork(self, source, target, tokens):
        """Makes the empty sequence `target` begin with the first `tokens` tokens of `source`."""
        if not 0 <= tokens <= self.lengths[source]:
            raise ArgumentError(f"tokens: found {tokens}, expected 0 to {self.lengths[source]}, the source's")
        self._copy(self._allocator.fork(source, target, tokens))
        self.lengths[target] = tokens

    def _copy(self, copies):
        for part, source, target in copies:
            for pool in self._pools[part]:
                pool[target] = pool[source]

    def statistics(self):
        """Steps, messages, and bytes received by kind."""
        return self._decoder.statistics()

    def close(self):
        """Frees what the decoder holds; a later call raises ArgumentError."""
        self._decoder.close()
