"""Full causal attention over packed documents whose rows are sharded over ranks: what NSA is compared with.

Keys and values of all ranks are gathered, and each run of consecutive local rows attends to its document's keys up to
the run's last row.
"""

import bisect
import contextlib
import math

import numpy as np
import torch
from torch import nn

try:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.attention.bias import causal_lower_right
except ImportError:  # PyTorch before 2.3
    sdpa_kernel = None

PLAIN_ROWS = 512  # queries per piece of the plain implementation, which holds their scores


class FullAttention(nn.Module):
    """The layer with its projections, as cpnsa.torch.NativeSparseAttention: x [rows, hidden] -> [rows, hidden]."""

    def __init__(self, hidden, num_q_heads, num_kv_heads, head_dim, rotary):
        super().__init__()
        self.num_q_heads, self.num_kv_heads, self.head_dim, self.rotary = num_q_heads, num_kv_heads, head_dim, rotary
        self.q_proj = nn.Linear(hidden, num_q_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(hidden, num_kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(hidden, num_kv_heads * head_dim, bias=False)
        self.out_proj = nn.Linear(num_q_heads * head_dim, hidden, bias=False)

    def forward(self, x, layout):
        plan = layout.plan
        q = self.q_proj(x).view(-1, self.num_q_heads, self.head_dim)
        k = self.k_proj(x).view(-1, self.num_kv_heads, self.head_dim)
        v = self.v_proj(x).view(-1, self.num_kv_heads, self.head_dim)
        if self.rotary is not None:
            q, k = self.rotary(q, plan.positions), self.rotary(k, plan.positions)
        if plan.partition.ranks > 1:
            k, v = plan.unshard(torch.stack((k, v), 1)).unbind(1)
        out = [attend(q[begin:end], k[first:last], v[first:last]) for begin, end, first, last in layout.runs]
        return self.out_proj(torch.cat(out).flatten(1) if out else q.flatten(1))


def attend(q, k, v):
    """Causal attention of q [rows, H, d] to k and v [keys, G, d]; the last row sees all keys. Returns [rows, H, d]."""
    if sdpa_kernel is None:
        return _plain(q, k, v)
    q, k, v = (tensor.transpose(0, 1)[None] for tensor in (q, k, v))
    rows, keys = q.shape[2], k.shape[2]
    masked = {"is_causal": True} if rows == keys else {"attn_mask": causal_lower_right(rows, keys)}
    if k.shape[1] != q.shape[1]:  # no grouped queries: the bias of causal_lower_right does not take them
        k, v = (tensor.repeat_interleave(q.shape[1] // k.shape[1], 1) for tensor in (k, v))
    # cuDNN would plan every length of document once; FlashAttention takes any.
    kernels = sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
    with kernels if q.is_cuda else contextlib.nullcontext():
        out = nn.functional.scaled_dot_product_attention(q, k, v, **masked)
    return out[0].transpose(0, 1)


def _plain(q, k, v):
    rows, keys, share = q.shape[0], k.shape[0], q.shape[1] // k.shape[1]
    k, v = (tensor.repeat_interleave(share, 1).transpose(0, 1) for tensor in (k, v))  # [H, keys, d]
    out = []
    for begin in range(0, rows, PLAIN_ROWS):
        end = min(rows, begin + PLAIN_ROWS)
        last = keys - rows + torch.arange(begin, end, device=q.device)  # the last key that each row sees
        hidden = torch.arange(keys, device=q.device)[None, :] > last[:, None]
        scores = q[begin:end].transpose(0, 1) @ k.transpose(1, 2) / math.sqrt(q.shape[2])
        out.append((scores.masked_fill(hidden, -math.inf).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(out)


def runs_of(rows, bounds):
    """(first local row, end, first key, end of keys) of each run of consecutive rows of one document. `rows` are the
    tokens of the packed sequence that this rank has, a NumPy array; `bounds` the documents' bounds."""
    runs = []
    edges = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
    for begin, end in zip(edges, edges[1:]):
        while begin < end:  # a run per document
            document = bisect.bisect_right(bounds, int(rows[begin])) - 1
            upto = min(end, begin + bounds[document + 1] - int(rows[begin]))
            runs.append((begin, upto, bounds[document], int(rows[upto - 1]) + 1))
            begin = upto
    return runs
