"""Attention as operators that torch.compile keeps whole in its graphs; PyTorch 2.4 and later.

A plan is a number in them, and what a forward leaves for its backward on the host is a tensor of one number that keeps
it alive.
"""

from typing import List, Tuple

import torch

from .. import _core
from .function import dense
from .plan import of_handle


@torch.library.custom_op("cpnsa::attention_forward", mutates_args=())
def attention_forward(plan: int, saved_bytes: int, head_dim_v: int, places: List[int],
                      tensors: List[torch.Tensor]) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    out, state, memory = of_handle(plan).forward_step(places, tensors)
    token = torch.zeros(1, dtype=torch.int64) if state is None else torch.from_dlpack(state.token())
    return out, memory, token


@attention_forward.register_fake
def _(plan, saved_bytes, head_dim_v, places, tensors):
    q = tensors[places[0]]
    return (q.new_empty((q.shape[0], q.shape[1], head_dim_v)), q.new_empty((saved_bytes,), dtype=torch.uint8),
            torch.empty(1, dtype=torch.int64))


@torch.library.custom_op("cpnsa::attention_backward", mutates_args=())
def attention_backward(plan: int, places: List[int], needed: List[bool], tensors: List[torch.Tensor],
                       dout: torch.Tensor, memory: torch.Tensor, token: torch.Tensor) -> List[torch.Tensor]:
    plan = of_handle(plan)
    with plan.refusing():
        plan.expect_backward()
        state = _core.Saved.of_token(token.item())
        dout = dense(dout)
    gradients = plan.backward_step(places, tensors, dout, state, memory, needed)
    # An operator returns tensors alone: those not asked for are empty.
    return [tensor.new_empty(0) if gradient is None else gradient for tensor, gradient in zip(tensors, gradients)]


@attention_backward.register_fake
def _(plan, places, needed, tensors, dout, memory, token):
    first_parameter = {place for place in places[8:] if place >= 0}
    return [torch.empty_like(tensor) if need or index not in first_parameter else tensor.new_empty(0)
            for index, (tensor, need) in enumerate(zip(tensors, needed))]


def _setup(ctx, inputs, output):
    plan, _, _, places, unique = inputs
    _, memory, token = output
    ctx.plan, ctx.places = plan, places
    ctx.needed = [tensor.requires_grad for tensor in unique]
    ctx.save_for_backward(memory, token, *unique)


def _backward(ctx, dout, *_):
    memory, token, *unique = ctx.saved_tensors
    gradients = attention_backward(ctx.plan, ctx.places, ctx.needed, unique, dout, memory, token)
    wanted = [gradient if need else None for gradient, need in zip(gradients, ctx.needed)]
    return None, None, None, None, wanted


attention_forward.register_autograd(_backward, setup_context=_setup)


def attention(plan, saved_bytes, head_dim_v, places, tensors):
    return attention_forward(plan, saved_bytes, head_dim_v, places, tensors)[0]
