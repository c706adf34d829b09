"""Rows of all ranks of a plan as one packed tensor, with gradients."""

import torch
import torch.distributed as dist

__all__ = ["unshard"]


def unshard(rows: torch.Tensor, plan, dim: int) -> torch.Tensor:
    """See Plan.unshard()."""
    return _Unshard.apply(rows, plan, dim)


class _Unshard(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, plan, dim):
        ctx.plan, ctx.dim = plan, dim
        ranks, group = plan.partition.ranks, _process_group(plan.group)
        own = rows.movedim(dim, 0).contiguous()
        if ranks == 1:
            parts = [own]
        else:  # ranks may have different numbers of rows; collectives of PyTorch move equal parts
            most = max(plan.partition.local_tokens(rank) for rank in range(ranks))
            padded = own.new_zeros((most, *own.shape[1:]))
            padded[:own.shape[0]] = own
            parts = [torch.empty_like(padded) for _ in range(ranks)]
            dist.all_gather(parts, padded, group=group)
        whole = own.new_empty((plan.partition.tokens, *own.shape[1:]))
        for rank, part in enumerate(parts):
            rows = torch.from_dlpack(plan.partition.global_rows(rank)).to(own.device)
            whole[rows] = part[:rows.shape[0]]
        return whole.movedim(0, dim)

    @staticmethod
    def backward(ctx, gradient):
        plan = ctx.plan
        gradient = gradient.contiguous()
        if plan.partition.ranks > 1:
            gradient = gradient.clone()
            dist.all_reduce(gradient, group=_process_group(plan.group))
        return gradient.index_select(ctx.dim, plan.rows.to(gradient.device)), None, None


def _process_group(group):
    return group.get_group() if hasattr(group, "get_group") else group  # a DeviceMesh of one dimension
