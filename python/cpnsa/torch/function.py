"""Attention as a differentiable function."""

from typing import Optional, Tuple, Union

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
              selected: Optional[torch.Tensor] = None, layer: Union[int, torch.Tensor] = 0,
              q_cmp: Optional[torch.Tensor] = None, sinks=None, given_selection: Optional[torch.Tensor] = None,
              summary_rotation: Optional[Tuple[torch.Tensor, torch.Tensor]] = None, interleaved: bool = False,
              log_sum_exp=None, operator: bool = False) -> torch.Tensor:
    """out [rows, H, d_v] of this rank's rows; collective, and so is its backward.

    q [rows, H, d_qk], k [rows, G, d_qk], v [rows, G, d_v], gate [rows, H, 3] of the plan's type; `k` and `v` may be
    three tensors, of the compressed, selected and window branch. `compress_k` and `compress_v` are dictionaries of pos,
    weight, w1, b1, w2, b2, as the compressor has them. `selected`, if given, is written: int32 [rows, G, n]. `layer` is
    the caller's number of the layer, from 1, where one plan serves several: ranks that call them in another order get a
    MismatchError. Without it, over several ranks, a plan's forward must have had its backward before the next one,
    else ArgumentError. Inside torch.compile it may be a tensor, int64 [1] on the CPU, so that layers can share a graph.

    With the plan's options of their names: `q_cmp` [rows, H, d_qk] is the query of the compressed branch and of
    importance; `sinks` [H], or a pair of them, is a logit per head in the softmax of the selected and of the window
    branch; `given_selection`, int32 [rows, G, n], are the blocks to read in place of the most important ones.
    `summary_rotation` (cos, sin), [summaries of a document, pairs] of the accumulating type, rotates summaries of keys;
    pairs of channels are neighbours if `interleaved`, else halves apart. `log_sum_exp`, three tensors [rows, H] of the
    accumulating type or None, are written: those of the compressed, selected and window branch.

    `operator` runs torch.ops.cpnsa.attention_forward in eager mode too (PyTorch 2.4 and later), as torch.compile does
    always: selective checkpointing, FLOP counters and dispatch modes see it.

    Tensors that are not contiguous are copied. Under autocast, and for parameters always, tensors of other floating
    types are cast to the plan's.
    """
    if not isinstance(plan, Plan):
        raise ArgumentError(f"plan: found {type(plan).__name__}, expected a cpnsa.torch.Plan")
    if operator and not has_operators:
        raise ArgumentError(f"operator: found True with PyTorch {torch.__version__}, expected 2.4 or later")
    if operator or compiling() or (has_operators and isinstance(q, FakeTensor)):
        for name, tensor in (("selected", selected), ("given_selection", given_selection),
                             ("summary_rotation", summary_rotation), ("log_sum_exp", log_sum_exp)):
            if tensor is not None:
                raise ArgumentError(f"{name}: found one, expected none inside torch.compile or with operator=True")
        indices, unique = _checked(plan, False, q, k, v, gate, compress_k, compress_v, q_cmp, sinks)
        number = layer if isinstance(layer, torch.Tensor) else torch.tensor([layer], dtype=torch.int64, device="cpu")
        token, number = like(plan.token, q), like(number, q)
        return compiled.attention(token, number, plan.saved_bytes, plan.steps.head_dim_v, indices, unique)
    try:  # for refusing(), at no cost
        indices, unique = _checked(plan, q_cmp is None and sinks is None, q, k, v, gate, compress_k, compress_v,
                                   q_cmp, sinks)
        extras = tensors.extras_of(given_selection, summary_rotation, interleaved, log_sum_exp)
    except Exception as problem:
        plan.steps.refuse(problem)
        raise
    return _Attention.apply(plan.steps, indices, int(layer), selected, extras, *unique)


def _checked(plan, quick, q, k, v, gate, compress_k, compress_v, q_cmp=None, sinks=None):
    """The index of each flat input among the different tensors given, and these tensors, as the plan takes them."""
    dtype = plan.dtype
    if quick:  # the same without a word, and no compiler looks into it
        numbered = _core._numbered(dtype, q, k, v, gate, compress_k, compress_v)
        if numbered is not None:
            return numbered
    given = tensors.flat(q, k, v, gate, compress_k, compress_v, q_cmp, sinks)
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
    def forward(ctx, steps, indices, layer, selected, extras, *unique):
        out, state, memory = steps.forward(indices, unique, layer, selected, extras)
        ctx.steps, ctx.indices, ctx.layer, ctx.state, ctx.extras = steps, indices, layer, state, extras
        ctx.save_for_backward(memory, *unique)
        return out

    @staticmethod
    def backward(ctx, dout):
        return _once(ctx, dout) if torch.is_grad_enabled() else _gradients(ctx, dout)


def _gradients(ctx, dout):
    steps = ctx.steps
    try:
        steps.expect_backward(ctx.layer)
        memory, *unique = ctx.saved_tensors  # raises where one was written to since
        needed = ctx.needs_input_grad[5:]
        if dout.is_neg() or not dout.is_contiguous():
            dout = dense(dout)
    except Exception as problem:
        steps.refuse(problem)
        raise
    gradients = steps.backward_of(ctx.indices, unique, dout, ctx.state, memory, needed, ctx.layer,
                                  ctx.extras)
    return (None, None, None, None, None, *gradients)


_once = torch.autograd.function.once_differentiable(_gradients)  # with create_graph; the rest need not pay for it
