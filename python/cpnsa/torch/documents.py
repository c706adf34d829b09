"""Documents of a batch as other libraries say them: positions that begin again, and masks of padding."""

import torch

from ..errors import ArgumentError

__all__ = ["bounds_of_mask", "bounds_of_positions"]


def bounds_of_positions(position_ids: torch.Tensor) -> list:
    """cu_seqlens of documents whose tokens count from 0: position_ids [tokens], or [batch, length] row after row.

    Each position is 0 or that of the token before it plus one; anything else (an offset, a gap) is refused, because
    documents are not what it means. On a GPU the check waits for it.
    """
    whole = isinstance(position_ids, torch.Tensor) and not position_ids.is_floating_point()
    if not whole or position_ids.dim() not in (1, 2):
        raise ArgumentError("position_ids: found no whole numbers [tokens] or [batch, length], expected them")
    length = position_ids.shape[-1]
    flat = position_ids.reshape(-1)
    begins = flat == 0
    follows = torch.nn.functional.pad(flat[:-1] + 1, (1, 0)) == flat
    if length > 0:
        follows[::length] = False  # a sequence does not continue that of the row before
    wrong = ~(begins | follows)
    if bool(wrong.any()):
        token = int(wrong.nonzero()[0])
        raise ArgumentError(f"position_ids: found {int(flat[token])} at token {token}, expected 0 or one more than the "
                            "token before it")
    return [*begins.nonzero()[:, 0].tolist(), flat.shape[0]]


def bounds_of_mask(attention_mask: torch.Tensor) -> list:
    """cu_seqlens of a padded batch: attention_mask [batch, length], 1 for tokens and 0 for padding at one or both ends.

    The tokens of a sequence are a document, and so is each run of padding, which no token sees; rows of the result at
    padding mean nothing. A mask with a hole between tokens is refused. On a GPU the check waits for it.
    """
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.dim() != 2 or attention_mask.is_floating_point():
        raise ArgumentError("attention_mask: found no [batch, length] of 0 and 1, expected one")
    batch, length = attention_mask.shape
    real = attention_mask != 0
    changes = real[:, 1:] != real[:, :-1]
    rises = (changes & real[:, 1:]).sum(1) + real[:, :1].sum(1)
    if bool((rises > 1).any()):
        row = int((rises > 1).nonzero()[0])
        raise ArgumentError(f"attention_mask: found padding between tokens in row {row}, expected padding at the ends")
    begins = torch.cat([torch.ones(batch, 1, dtype=torch.bool, device=real.device), changes], 1).reshape(-1)
    return [*begins.nonzero()[:, 0].tolist(), batch * length]
