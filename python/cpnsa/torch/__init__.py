"""Attention on PyTorch tensors and torch.distributed process groups, from PyTorch 1.13.

    plan = cpnsa.torch.Plan(config, cu_seqlens, group=cp_group, dtype=torch.bfloat16, device="cuda")
    out = cpnsa.torch.attention(plan, q, k, v, gate, compress_k, compress_v)

or the layer with its projections, NativeSparseAttention. docs/pytorch.md has complete programs.
"""

from .documents import bounds_of_mask, bounds_of_positions
from .full import full_attention
from .function import attention
from .groups import communicator_of, release
from .kv_cache import KvCache
from .module import Compressor, NativeSparseAttention
from .parallel import tensor_parallel
from .plan import Plan
from .steps import dtype_names

__all__ = ["Compressor", "KvCache", "NativeSparseAttention", "Plan", "attention", "bounds_of_mask",
           "bounds_of_positions", "communicator_of", "dtype_names", "full_attention", "release", "tensor_parallel"]
