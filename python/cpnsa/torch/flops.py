"""Floating-point operations of attention, for torch.utils.flop_counter."""

import torch

from .. import _core

__all__ = ["forward_and_backward", "register"]


def forward_and_backward(config: _core.Config, positions: torch.Tensor):
    """FLOPs of the matrix products of a forward and of a backward of one rank, whose rows have these positions in
    their documents. The compressors' products are left out; a query's own block counts as one of its blocks."""
    l, s, m, n = config.compress_block, config.compress_stride, config.select_block, config.select_count
    has = {branch: config.branches == "all" or branch in config.branches.split("_") for branch in _core.branch_names}
    summaries = torch.where(positions >= l - 1, (positions - (l - 1)).div(s, rounding_mode="floor") + 1, 0).sum().item()
    seen = positions + 1
    pairs = {"cmp": summaries, "slc": torch.minimum(seen, (n - 1) * m + positions % m + 1).sum().item(),
             "win": seen.clamp(max=config.window).sum().item()}
    attended = sum(pairs[branch] for branch in pairs if has[branch])
    d_qk, d_v = config.head_dim_qk, config.head_dim_v
    importance = summaries * d_qk if has["slc"] else 0
    flop = 2 * config.num_q_heads
    # The backward computes scores again, then dV, dP, dQ and dK.
    return flop * (attended * (d_qk + d_v) + importance), flop * attended * (3 * d_qk + 2 * d_v)


def register(forward, backward) -> None:
    """Gives the two operators their formulas. An operator's plan is the first of its arguments."""
    try:
        from torch.utils.flop_counter import register_flop_formula
    except ImportError:  # before PyTorch 2.2
        return

    @register_flop_formula(forward, get_raw=True)
    def _(plan, *args, **kwargs):
        return _core.of_token(plan.item()).flops[0]

    @register_flop_formula(backward, get_raw=True)
    def _(plan, *args, **kwargs):
        return _core.of_token(plan.item()).flops[1]
