"""Attention on PyTorch tensors and torch.distributed process groups, from PyTorch 1.13.

    plan = cpnsa.torch.Plan(config, cu_seqlens, group=cp_group, dtype=torch.bfloat16, device="cuda")
    out = cpnsa.torch.attention(plan, q, k, v, gate, compress_k, compress_v)

or the layer with its projections, NativeSparseAttention. docs/pytorch.md has complete programs.
"""

import torch

from .. import _core

dtype_names = {torch.float64: "f64", torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
_core._use_torch(torch.Tensor, torch.strided, dtype_names)

from .function import attention  # noqa: E402
from .groups import communicator_of, release  # noqa: E402
from .module import Compressor, NativeSparseAttention  # noqa: E402
from .plan import Plan  # noqa: E402

__all__ = ["Compressor", "NativeSparseAttention", "Plan", "attention", "communicator_of", "release"]
