"""Attention as operators that torch.compile keeps whole in its graphs; PyTorch 2.4 and later.

A graph holds tensors. So the layer that runs, and what a forward leaves on the host for its backward, are tensors of
one number in it, whose memory keeps them alive.
"""

from typing import List, Tuple

import torch

from .. import _core
from ..tensors import first_parameter
from . import flops
from .steps import dense

__all__ = ["attention"]


@torch.library.custom_op("cpnsa::attention_forward", mutates_args=())
def attention_forward(plan: torch.Tensor, layer: torch.Tensor, saved_bytes: int, head_dim_v: int, indices: List[int],
                      tensors: List[torch.Tensor]) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    out, state, memory = _core.of_token(plan.item()).forward(indices, tensors, layer.item())
    saved = torch.zeros(1, dtype=torch.int64, device="cpu") if state is None else torch.from_dlpack(_core.token(state))
    return out, memory, saved


@attention_forward.register_fake
def _(plan, layer, saved_bytes, head_dim_v, indices, tensors):
    q = tensors[indices[0]]
    return (q.new_empty((q.shape[0], q.shape[1], head_dim_v)), q.new_empty((saved_bytes,), dtype=torch.uint8),
            torch.empty(1, dtype=torch.int64, device="cpu"))


@torch.library.custom_op("cpnsa::attention_backward", mutates_args=())
def attention_backward(plan: torch.Tensor, layer: torch.Tensor, indices: List[int], needed: List[bool],
                       tensors: List[torch.Tensor], dout: torch.Tensor, memory: torch.Tensor,
                       saved: torch.Tensor) -> List[torch.Tensor]:
    steps = _core.of_token(plan.item())
    with steps.refusing():
        steps.expect_backward(layer.item())
        state = _core.of_token(saved.item())
        dout = dense(dout)
    gradients = steps.backward_of(indices, tensors, dout, state, memory, needed, layer.item())
    # An operator returns tensors alone: gradients that are not needed are empty.
    return [tensor.new_empty(0) if gradient is None else gradient for tensor, gradient in zip(tensors, gradients)]


@attention_backward.register_fake
def _(plan, layer, indices, needed, tensors, dout, memory, saved):
    parameters = {index for index in indices[first_parameter:] if index >= 0}
    return [torch.empty_like(tensor) if need or index not in parameters else tensor.new_empty(0)
            for index, (tensor, need) in enumerate(zip(tensors, needed))]


def _setup(ctx, inputs, output):
    plan, layer, _, _, indices, unique = inputs
    _, memory, saved = output
    ctx.indices = indices
    ctx.needed = [tensor.requires_grad for tensor in unique]
    ctx.save_for_backward(plan, layer, memory, saved, *unique)


def _backward(ctx, dout, *_):
    plan, layer, memory, saved, *unique = ctx.saved_tensors
    gradients = attention_backward(plan, layer, ctx.indices, ctx.needed, unique, dout, memory, saved)
    wanted = [gradient if need else None for gradient, need in zip(gradients, ctx.needed)]
    return None, None, None, None, None, wanted


attention_forward.register_autograd(_backward, setup_context=_setup)
flops.register(torch.ops.cpnsa.attention_forward, torch.ops.cpnsa.attention_backward)


def attention(plan: torch.Tensor, layer: torch.Tensor, saved_bytes: int, head_dim_v: int, indices: List[int],
              tensors: List[torch.Tensor]) -> torch.Tensor:
    """out of the layer whose token `plan` is; `layer` holds its number, int64 [1] on the CPU."""
    return attention_forward(plan, layer, saved_bytes, head_dim_v, indices, tensors)[0]
