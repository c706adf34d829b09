"""Rows of a packed sequence, moved from one layout over ranks to another, with gradients."""

from typing import List, Sequence

import torch
import torch.distributed as dist

__all__ = ["Redistribution", "megatron_rows"]


def megatron_rows(bounds: Sequence[int], rank: int, ranks: int) -> torch.Tensor:
    """The tokens of this rank's rows as Megatron lays them: each document in 2P equal chunks, of which rank r has
    chunks r and 2P - 1 - r. Documents are multiples of 2P tokens."""
    rows = []
    for begin, end in zip(bounds, bounds[1:]):
        chunk = (end - begin) // (2 * ranks)
        for index in (rank, 2 * ranks - 1 - rank):
            rows.append(torch.arange(begin + index * chunk, begin + (index + 1) * chunk))
    return torch.cat(rows) if rows else torch.empty(0, dtype=torch.int64)


class Redistribution:
    """From `source` to `target`, lists of each rank's tokens in the order of its rows, over a process group."""

    def __init__(self, source: List[torch.Tensor], target: List[torch.Tensor], rank: int, group, device):
        tokens = sum(part.numel() for part in source)
        to, come_from = torch.empty(tokens, dtype=torch.int64), torch.empty(tokens, dtype=torch.int64)
        for peer, (of_source, of_target) in enumerate(zip(source, target)):
            come_from[of_source], to[of_target] = peer, peer
        # Messages hold rows in ascending order of their tokens.
        self.send, self.sends = _by_peer(source[rank], to, len(source), device)
        self.receive, self.receives = _by_peer(target[rank], come_from, len(source), device)
        self.group = group

    def forth(self, x: torch.Tensor) -> torch.Tensor:
        """Rows [source rows, ...] as rows [target rows, ...]; collective, and so is its backward."""
        return _Move.apply(x, self, False)

    def back(self, x: torch.Tensor) -> torch.Tensor:
        return _Move.apply(x, self, True)


def _by_peer(own, owner, peers, device):
    order = torch.argsort(owner[own] * (owner.numel() + 1) + own)
    return order.to(device), torch.bincount(owner[own], minlength=peers).tolist()


def _move(x, way, back):
    send, sends, receive, receives = way.send, way.sends, way.receive, way.receives
    if back:
        send, sends, receive, receives = receive, receives, send, sends
    packed = x.index_select(0, send).contiguous()
    arrived = packed.new_empty((len(receive), *packed.shape[1:]))
    dist.all_to_all_single(arrived, packed, receives, sends, group=way.group)
    return torch.empty_like(arrived).index_copy_(0, receive, arrived)


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, way, back):
        ctx.way, ctx.back = way, back
        return _move(x, way, back)

    @staticmethod
    def backward(ctx, gradient):
        return _move(gradient, ctx.way, not ctx.back), None, None
