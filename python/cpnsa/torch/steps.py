"""Forward and backward of the layer of a plan, on PyTorch tensors."""

from typing import List, Optional, Sequence, Tuple

import torch

from .. import _core, tensors
from ..errors import ArgumentError, Refusing, refuse
from .flops import forward_and_backward

__all__ = ["Steps", "dense", "dtype_names"]

dtype_names = {torch.float64: "f64", torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
_core._use_torch(torch.Tensor, torch.strided, dtype_names)

if hasattr(torch._C, "_cuda_getCurrentRawStream"):  # not where PyTorch was built without CUDA; a tenth of the time
    _current_stream = torch._C._cuda_getCurrentRawStream
else:

    def _current_stream(index):
        return torch.cuda.current_stream(index).cuda_stream


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in C order, and not a view whose memory holds the opposite numbers."""
    return tensor.contiguous().resolve_neg()


class Steps:
    """The library's layer of one plan. A compiled graph holds it by `token`, a tensor whose memory keeps it alive: a
    graph's inputs and constants are tensors, and a graph can outlive the Plan object that it was traced with."""

    def __init__(self, attention: _core.Attention, config: _core.Config, dtype: torch.dtype, device: torch.device,
                 backward: bool, ranks: int):
        self.attention = attention
        self.dtype = dtype
        self.device = device
        self.backward = backward
        self.saved_bytes = attention.saved_bytes
        self.workspace_bytes = attention.workspace_bytes
        self.head_dim_v = config.head_dim_v  # plain numbers: compilers do not look into a Config
        self.out_shape = (attention.rows, config.num_q_heads, config.head_dim_v)
        self._gpu = device.index
        self._config, self._flops, self.positions = config, None, None
        self._ranks = ranks
        self._awaits_backward = False  # whether a forward without a layer's number has had no backward yet

    @property
    def flops(self) -> Tuple[int, int]:
        """Floating-point operations of a forward, and of a backward."""
        if self._flops is None:
            self._flops = forward_and_backward(self._config, self.positions)
        return self._flops

    def refusing(self) -> Refusing:
        """A context for the work before a step: an exception in it is told to the other ranks."""
        return Refusing(self.attention)

    def refuse(self, problem: BaseException) -> None:
        """Tells the other ranks of an exception; costs less than refusing() where there is none."""
        refuse(self.attention, problem)

    def forward(self, indices: Sequence[int], unique: Sequence[torch.Tensor], layer: int = 0,
                selected: Optional[torch.Tensor] = None,
                extras: Optional[dict] = None) -> Tuple[torch.Tensor, Optional[_core.Saved], torch.Tensor]:
        """out, and what a backward needs: the library's Saved and its memory."""
        try:
            if layer == 0 and self._awaits_backward:
                raise ArgumentError(f"layer: found none in the second forward of a plan over {self._ranks} ranks "
                                    "before a backward of the first, expected the number of the calling layer, e.g. "
                                    "layer=1: ranks that call layers in different orders are found by it")
            out = torch.empty(self.out_shape, dtype=self.dtype, device=self.device)
            # PyTorch's caching allocator may reuse this memory as soon as the stream has passed the step.
            workspace = torch.empty(self.workspace_bytes, dtype=torch.uint8, device=self.device)
            memory = torch.empty(self.saved_bytes, dtype=torch.uint8, device=self.device)
            state = _core.Saved() if self.backward else None
        except Exception as problem:
            self.refuse(problem)
            raise
        self.attention.forward(unique, out, selected, state, memory, workspace, self._stream(), indices, layer,
                               extras)
        if layer == 0:
            self._awaits_backward = self._ranks > 1
        return out, state, memory

    def expect_backward(self, layer: int) -> None:
        if layer == 0:
            self._awaits_backward = False
        if not self.backward:
            raise ArgumentError("backward: found a plan made with backward=False, expected one made for it")

    def backward_of(self, indices: Sequence[int], unique: Sequence[torch.Tensor], dout: torch.Tensor,
                    state: _core.Saved, memory: torch.Tensor, needed: Sequence[bool],
                    layer: int = 0, extras: Optional[dict] = None) -> List[Optional[torch.Tensor]]:
        """Gradients of the `unique` tensors, None for parameters that are not `needed`."""
        try:
            if False in needed:
                first = max(indices[:tensors.first_parameter]) + 1  # of the parameters among `unique`
                gradients = [torch.empty_like(tensor) if need or index < first else None
                             for index, (tensor, need) in enumerate(zip(unique, needed))]
            else:
                gradients = list(map(torch.empty_like, unique))
            workspace = torch.empty(self.workspace_bytes, dtype=torch.uint8, device=self.device)
        except Exception as problem:
            self.refuse(problem)
            raise
        self.attention.backward(unique, dout, state, memory, gradients, workspace, self._stream(), indices,
                                layer, extras)
        return gradients

    def _stream(self) -> int:
        return 0 if self._gpu is None else _current_stream(self._gpu)
