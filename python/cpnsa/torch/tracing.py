"""Compilers and fake tensors: where PyTorch runs a model on tensors without numbers."""

import contextlib

import torch

__all__ = ["FakeTensor", "compiling", "has_operators", "like", "real_tensors", "uncompiled"]

#: Whether PyTorch has the operators of compiled.py: 2.4 and later.
has_operators = hasattr(torch, "compiler") and hasattr(torch.compiler, "is_compiling") and hasattr(torch.library,
                                                                                                  "custom_op")
if has_operators:
    compiling = torch.compiler.is_compiling
else:

    def compiling():
        return False

#: A function that compilers leave as it is: it changes what tensors do not show, such as a cache.
if hasattr(getattr(torch, "compiler", None), "disable"):
    uncompiled = torch.compiler.disable
else:

    def uncompiled(function):
        return function


try:
    from torch._subclasses.fake_tensor import FakeTensor
    from torch._subclasses.fake_tensor import unset_fake_temporarily as real_tensors
except ImportError:  # PyTorch before 2.2
    FakeTensor, real_tensors = (), contextlib.nullcontext


def like(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """A real tensor as one that can be used with `other`: a fake one, where `other` is fake (FakeTensorMode). A
    compiler makes its own of the tensors that it finds."""
    if isinstance(other, FakeTensor) and not isinstance(tensor, FakeTensor) and not compiling():
        return other.fake_mode.from_tensor(tensor)
    return tensor
