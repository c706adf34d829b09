"""The documents of a batch as Megatron-core says them: in PackedSeqParams, or in an attention mask."""

from typing import Optional, Tuple

import torch

from ..errors import ArgumentError
from ..tensors import bounds_of

__all__ = ["of_mask", "of_packed"]


def of_packed(packed) -> Tuple[int, ...]:
    """Bounds of the documents in the whole packed sequence; padding is part of the document before it.

    The values are read on every call: a loader may refill one tensor for each batch. On a GPU the read waits for it.
    """
    def read(padded, plain):
        of_padded = getattr(packed, padded, None)
        tensor = of_padded if of_padded is not None else getattr(packed, plain)
        return None if tensor is None else bounds_of(tensor)

    bounds = read("cu_seqlens_q_padded", "cu_seqlens_q")
    if bounds is None:
        raise ArgumentError("cu_seqlens_q: found none, expected the bounds of the packed documents")
    keys = read("cu_seqlens_kv_padded", "cu_seqlens_kv")
    if keys is not None and keys != bounds:
        raise ArgumentError(f"cu_seqlens_kv: found {keys}, expected {bounds}, those of the queries")
    return tuple(bounds)


def of_mask(mask: Optional[torch.Tensor], length: int, batch: int, rank: int, ranks: int) -> Tuple[int, ...]:
    """Bounds of the documents of `batch` sequences of `length` tokens, one sequence after another.

    None is one document per sequence. A mask is bool, true where a key is hidden: [batch or 1, 1, rows, length], or
    [batch or 1, 1, 1, length], which hides keys besides those in the future. It must be causal within documents that
    follow each other, as `--reset-attention-mask` makes it. A token whose own key is hidden is padding: padding tokens
    that follow each other become a document of their own, which no other token sees. Any other mask is refused. On a
    GPU the check waits for it.
    """
    whole = tuple(range(0, (batch + 1) * length, length))
    if mask is None or mask.numel() <= 1:
        return whole
    rows = length // ranks
    shape = list(mask.shape)
    if mask.dtype != torch.bool:
        raise ArgumentError(f"attention_mask: found {mask.dtype}, expected bool, true where a key is hidden")
    if len(shape) != 4 or shape[0] not in (1, batch) or shape[2] not in (1, rows) or shape[1::2] != [1, length]:
        raise ArgumentError(f"attention_mask: found {shape}, expected [{batch} or 1, 1, {rows} or 1, {length}]")
    positions = _zigzag_positions(length, rank, ranks, mask.device)
    keys = torch.arange(length, device=mask.device)
    past = keys <= positions[:, None]
    visible = ~mask[:, 0] & past if shape[2] == 1 and rows > 1 else ~mask[:, 0]
    if ranks > 1:
        if not bool((visible == past).all()):
            raise ArgumentError(f"attention_mask: found one that is not causal alone, on one of {ranks} "
                                "context-parallel ranks, expected none: give documents by packed_seq_params")
        return whole
    real = visible.diagonal(dim1=1, dim2=2)  # [batch, length]
    first = visible.to(torch.uint8).argmax(-1)
    documents = (past & (keys >= first[..., None]) == visible) | ~real[..., None]
    before = torch.nn.functional.pad(real[:, :-1], (1, 0))
    begins = torch.where(real, first == keys, before | (keys == 0))
    # A token that begins no document continues that of the token before it.
    same = (real == before) & (~real | (first == torch.nn.functional.pad(first[:, :-1], (1, 0))))
    if not bool(documents.all() & (begins | same).all()):
        raise ArgumentError("attention_mask: found one that is not causal within documents, expected a causal mask, "
                            "one of documents that follow each other, or padding")
    begins = begins.expand(batch, length).flatten().nonzero().flatten().tolist()
    return (*begins, batch * length)


def _zigzag_positions(length, rank, ranks, device):
    """Megatron's layout: of 2 ranks chunks, rank r has chunks r and 2 ranks - 1 - r."""
    if ranks == 1:
        return torch.arange(length, device=device)
    chunk = length // (2 * ranks)
    one = torch.arange(chunk, device=device)
    return torch.cat([one + rank * chunk, one + (2 * ranks - 1 - rank) * chunk])
