"""Attention as a differentiable function."""

from typing import Optional, Union

import torch

from .. import _core, tensors
from ..errors import ArgumentError
from .plan import Plan
from .steps import dense
from .tracing import FakeTensor, compiling, has_operators, like

__all__ = ["attention"]

if has_operators:
    from . import compiled


def attention(plan: Plan, q, k, v, gate, compress_k: Optional[dict] = None, compress_v: Optional[dict] = None, *,
              selected: Optional[torch.Tensor] = None, layer: Union[int, torch.Tensor] = 0) -> torch.Tensor:
    """out [rows, H, d_v] of this rank's rows; collective, and so is its backward.

    q [rows, H, d_qk], k [rows, G, d_qk], v [rows, G, d_v], gate [rows, H, 3] of the plan's type; `k` and `v` may be
    three tensors, of the compressed, selected and window branch. `compress_k` and `compress_v` are dictionaries of pos,
    weight, w1, b1, w2, b2, as the compressor has them. `selected`, if given, is written: int32 [rows, G, n]. `layer` is
    the caller's number of the layer, where one plan serves several: ranks that call them in different orders get a
    MismatchError. Inside torch.compile it may be a tensor, int64 [1] on the CPU, so that layers can share a graph.

    Tensors that are not contiguous are copied. Under autocast, and for parameters always, tensors of other floating
    types are cast to the plan's.
    """
    if not isinstance(plan, Plan):
        raise ArgumentError(f"plan: found {type(plan).__name__}, expected a cpnsa.torch.Plan")
    if compiling() or (has_operators and isinstance(q, FakeTensor)):
        if selected is not None:
            raise ArgumentError("selected: found a tensor, expected none inside torch.compile")
        indices, unique = _checked(plan, False, q, k, v, gate, compress_k, compress_v)
        number = layer if isinstance(layer, torch.Tensor) else torch.tensor([layer], dtype=torch.int64, device="cpu")
        token, number = like(plan.token, q), like(number, q)
        return compiled.attention(token, number, plan.saved_bytes, plan.steps.head_dim_v, indices, unique)
    try:  # for refusing(), at no cost
        indices, unique = _checked(plan, True, q, k, v, gate, compress_k, compress_v)
    except Exception as problem:
        plan.steps.refuse(problem)
        raise
    return _Attention.apply(plan.steps, indices, int(layer), selected, *unique)


def _checked(plan, eager, q, k, v, gate, compress_k, compress_v):
    """The index of each flat input among the different tensors given, and these tensors, as the plan takes them."""
    dtype = plan.dtype
    if eager:  # the same without a word, and no compiler looks into it
        numbered = _core._numbered(dtype, q, k, v, gate, compress_k, compress_v)
        if numbered is not None:
            return numbered
    given = tensors.flat(q, k, v, gate, compress_k, compress_v)
    indices = tensors.indices(k, v, given)
    cast_all = _autocast(plan.device.type)
    unique = []
    for position, (tensor, own) in enumerate(zip(given, indices)):
        if own != len(unique):  # not given, or seen before
            continue
        if not isinstance(tensor, torch.Tensor):
            raise ArgumentError(f"{tensors.names[position]}: found {type(tensor).__name__}, expected a torch.Tensor")
        if tensor.layout is not torch.strided:
            raise ArgumentError(f"{tensors.names[position]}: found a tensor of layout {tensor.layout}, expected a "
                                "dense one")
        is_cast = cast_all or position >= tensors.first_parameter
        if tensor.dtype is not dtype and is_cast and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        unique.append(dense(tensor))
    return indices, unique


if hasattr(torch, "get_autocast_dtype"):  # 2.4 and later ask about a device
    _autocast = torch.is_autocast_enabled
else:

    def _autocast(device_type):
        return torch.is_autocast_enabled() if device_type == "cuda" else torch.is_autocast_cpu_enabled()


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, steps, indices, layer, selected, *unique):
        out, state, memory = steps.forward(indices, unique, layer, selected)
        ctx.steps, ctx.indices, ctx.layer, ctx.state = steps, indices, layer, state
        ctx.save_for_backward(memory, *unique)
        return out

    @staticmethod
    def backward(ctx, dout):
        return _once(ctx, dout) if torch.is_grad_enabled() else _gradients(ctx, dout)


def _gradients(ctx, dout):
    steps = ctx.steps
    try:
        steps.expect_backward()
        memory, *unique = ctx.saved_tensors  # raises where one was written to since
        needed = ctx.needs_input_grad[4:]
        if dout.is_neg() or not dout.is_contiguous():
            dout = dense(dout)
    except Exception as problem:
        steps.refuse(problem)
        raise
    gradients = steps.backward_of(ctx.indices, unique, dout, ctx.state, memory, needed, ctx.layer)
    return (None, None, None, None, *gradients)


_once = torch.autograd.function.once_differentiable(_gradients)  # with create_graph; the rest need not pay for it
