"""Megatron-core's static inference: prefill and decoding of native sparse attention over paged caches.

Each layer has a KvCache, which the inference context holds. The context's sequence_len_offset says how many tokens of
its sequences are in the caches; a smaller one than before (a new batch, rejected tokens) cuts the caches back."""

import torch

from ..errors import ArgumentError
from .kv_cache import KvCache

__all__ = ["attend", "context_of", "rotary_of_step"]

_CACHES = "native_sparse_caches"


def context_of(given, training):
    """The inference context among the arguments of an attention's forward, or None."""
    context = given.get("inference_context")
    context = given.get("inference_params") if context is None else context
    if context is None:
        return None
    if not getattr(context, "is_static_batching", bool)():
        raise ArgumentError(f"inference_context: found a {type(context).__name__}, expected a StaticInferenceContext")
    if training:
        raise ArgumentError("inference_context: found one in training mode, expected eval()")
    return context


def rotary_of_step(embedding, context, length):
    """The rows of a rotary embedding, or of a pair, for the `length` tokens of a step."""
    if embedding is None:
        return None
    if isinstance(embedding, tuple):
        return tuple(rotary_of_step(one, context, length) for one in embedding)
    begin = context.sequence_len_offset
    return embedding[begin:begin + length]


@torch.no_grad()
def attend(core, context, query, keys, values, gate):
    """out [rows, heads, d] of the step's queries; rows are one sequence after another. `keys` and `values` are lists of
    one tensor, or of one for each branch."""
    sequences = context.max_batch_size
    caches = context.__dict__.setdefault(_CACHES, {})
    if core.number not in caches:
        caches[core.number] = KvCache(core.nsa, sequences, context.max_sequence_length, dtype=query.dtype,
                                            device=query.device, branch_kv=core.branches == 3)
    cache = caches[core.number]
    first, batch, length = context.batch_size_offset, core.batch, query.shape[0] // core.batch
    if first + batch > sequences:
        raise ArgumentError(f"inference_context: found sequences {first} to {first + batch - 1}, expected less than "
                            f"max_batch_size {sequences}")
    for sequence in range(first, first + batch):
        if cache.lengths[sequence] < context.sequence_len_offset:
            raise ArgumentError(f"sequence_len_offset: found {context.sequence_len_offset}, expected at most "
                                f"{cache.lengths[sequence]}, the tokens of sequence {sequence} in the cache")
        cache.cut(sequence, context.sequence_len_offset)
    counts = [length if first <= sequence < first + batch else 0 for sequence in range(sequences)]
    with cache.step(counts) as step:
        def with_k(compress_k):
            return core.compress_v(lambda compress_v: step[0].attention(
                query, keys if len(keys) == 3 else keys[0], values if len(values) == 3 else values[0], gate, compress_k,
                compress_v))

        return core.compress_k(with_k)
