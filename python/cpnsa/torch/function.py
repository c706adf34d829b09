"""Attention as a differentiable function."""

import torch

from .. import tensors
from ..errors import ArgumentError
from .plan import Plan


def attention(plan, q, k, v, gate, compress_k=None, compress_v=None, *, selected=None):
    """out [rows, H, dv] of this rank's rows; collective, and so is its backward.

    q [rows, H, dk], k [rows, G, dk], v [rows, G, dv], gate [rows, H, 3] of the plan's type; `k` and `v` may be three
    tensors, of the compressed, selected and window branch. `compress_k` and `compress_v` are dictionaries of pos,
    weight, w1, b1, w2, b2, as the compressor has them. `selected`, if given, is written: int32 [rows, G, n].

    Tensors that are not contiguous are copied. Under autocast, and for parameters always, tensors of other floating
    types are cast to the plan's.
    """
    if not isinstance(plan, Plan):
        raise ArgumentError(f"plan: found {type(plan).__name__}, expected a cpnsa.torch.Plan")
    given = tensors.flat(q, k, v, gate, compress_k, compress_v)
    places = tensors.places(k, v, given)
    cast_all = _autocast(plan.device.type)
    unique = []
    for index, (tensor, place) in enumerate(zip(given, places)):
        if place != len(unique):  # not given, or seen before
            continue
        if not isinstance(tensor, torch.Tensor):
            raise ArgumentError(f"{tensors.names[index]}: found {type(tensor).__name__}, expected a torch.Tensor")
        if tensor.layout != torch.strided:
            raise ArgumentError(f"{tensors.names[index]}: found a tensor of layout {tensor.layout}, expected a dense one")
        unique.append(_prepared(tensor, plan, cast_all or index >= tensors.first_parameter))
    if _compiling():
        if selected is not None:
            raise ArgumentError("selected: found a tensor, expected none inside torch.compile")
        from . import compiled

        return compiled.attention(plan.handle, plan.saved_bytes, plan.head_dim_v, places, unique)
    return _Attention.apply(plan, places, selected, *unique)


def _prepared(tensor, plan, cast):
    if cast and tensor.dtype != plan.dtype and tensor.is_floating_point():
        tensor = tensor.to(plan.dtype)
    return tensor.contiguous()


if hasattr(torch, "get_autocast_dtype"):  # 2.4 and later ask about a device
    _autocast = torch.is_autocast_enabled
else:

    def _autocast(device_type):
        return torch.is_autocast_enabled() if device_type == "cuda" else torch.is_autocast_cpu_enabled()


if hasattr(torch, "compiler") and hasattr(torch.compiler, "is_compiling") and hasattr(torch.library, "custom_op"):
    _compiling = torch.compiler.is_compiling
else:

    def _compiling():
        return False


def placed(places, unique):
    """The flat inputs of a step, of the tensors that are different."""
    return tuple(None if place < 0 else unique[place] for place in places)


def gathered(places, unique, flat):
    """Of the flat gradients one for each of the tensors that are different."""
    gradients = [None] * len(unique)
    for place, gradient in zip(places, flat):
        if place >= 0 and gradient is not None:
            gradients[place] = gradient.to(unique[place].dtype)
    return gradients


def wanted_of(places, needed):
    return tuple(place >= 0 and needed[place] for place in places)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, plan, places, selected, *unique):
        out, state, memory = plan.forward(placed(places, unique), selected)
        ctx.plan, ctx.places, ctx.state = plan, places, state
        ctx.save_for_backward(memory, *unique)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dout):
        if ctx.state is None:
            raise ArgumentError("backward: found a plan made with backward=False, expected one made for it")
        memory, *unique = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:]
        flat = ctx.plan.backward_step(placed(ctx.places, unique), dout.contiguous(), ctx.state, memory,
                                      wanted_of(ctx.places, needed))
        gradients = gathered(ctx.places, unique, flat)
        return (None, None, None, *(gradient if need else None for gradient, need in zip(gradients, needed)))
