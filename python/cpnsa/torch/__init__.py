"""Attention on PyTorch tensors and torch.distributed process groups, from PyTorch 1.13.

    plan = cpnsa.torch.Plan(config, cu_seqlens, group=cp_group, dtype=torch.bfloat16, device="cuda")
    out = cpnsa.torch.attention(plan, q, k, v, gate, compress_k, compress_v)

or the layer with its projections, NativeSparseAttention. docs/pytorch.md has complete programs.
"""

from .function import attention
from .groups import communicator_of, release
from .module import Compressor, NativeSparseAttention
from .plan import Plan
from .steps import dtype_names

__all__ = ["Compressor", "NativeSparseAttention", "Plan", "attention", "communicator_of", "dtype_names", "release"]
