"""Full causal attention over a plan's rows by PyTorch's scaled_dot_product_attention, to compare with."""

import torch

from ..errors import ArgumentError

__all__ = ["full_attention"]


def full_attention(plan, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """out [rows, H, d_v] of this rank's rows: each query attends to all tokens of its document up to its own.

    q [rows, H, d_qk], k [rows, G, d_qk], v [rows, G, d_v]. With several ranks, each gathers all keys and values, and
    its backward sums their gradients over the ranks: collective. On one rank PyTorch chooses the kernel (cuDNN or flash
    attention on a GPU); on several the mask is a tensor of rows times tokens per document.
    """
    if not hasattr(torch.nn.functional, "scaled_dot_product_attention"):
        raise ArgumentError(f"full_attention: found PyTorch {torch.__version__}, expected 2.0 or later")
    config, partition = plan.config, plan.partition
    alone = partition.ranks == 1
    keys, values = (k, v) if alone else (plan.unshard(k), plan.unshard(v))
    repeat = config.num_q_heads // config.num_kv_heads
    bounds, rows, positions = partition.cu_seqlens, plan.rows, plan.positions
    out = q.new_empty((0, config.num_q_heads, config.head_dim_v)) if q.shape[0] == 0 else None
    parts, order = [], []
    for begin, end in zip(bounds, bounds[1:]):
        own = ((rows >= begin) & (rows < end)).nonzero()[:, 0]
        if own.numel() == 0:
            continue
        of_document = [one[begin:end].repeat_interleave(repeat, 1).transpose(0, 1)[None] for one in (keys, values)]
        queries = q.index_select(0, own).transpose(0, 1)[None]
        mask = None if alone else positions[own][:, None] >= torch.arange(end - begin, device=q.device)
        attended = torch.nn.functional.scaled_dot_product_attention(
            queries * (config.softmax_scale * config.head_dim_qk ** 0.5), *of_document, attn_mask=mask, is_causal=alone)
        parts.append(attended[0].transpose(0, 1))
        order.append(own)
    if out is None:
        out = torch.cat(parts).index_select(0, torch.argsort(torch.cat(order)))
    if not alone:  # ranks without rows take part in the backward too
        out = out + 0 * (keys.sum() + values.sum()).to(out.dtype)
    return out
