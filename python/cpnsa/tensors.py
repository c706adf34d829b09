"""The tensors of a step in the order that the C++ interface takes them in; shapes in docs/algorithm.md."""

import operator

from ._core import branch_names as branches
from ._core import parameter_names
from ._core import tensor_names as names
from .errors import ArgumentError

__all__ = ["bounds_of", "branches", "extras_of", "first_parameter", "flat", "gradients_of", "names", "of_branches",
           "of_compressor", "parameter_names", "indices"]

_parameter_names = frozenset(parameter_names)

if len(names) != 1 + 3 + 3 + 1 + 1 + 2 * len(parameter_names) + 2:
    raise ImportError("cpnsa: the extension module and the Python files are of different versions")


def bounds_of(cu_seqlens):
    """The documents' bounds as a list of integers: of a sequence, an array or a tensor [n], or [1, n]."""
    def wrong(found):
        return ArgumentError(f"cu_seqlens: found {found}, expected integers, the bounds of documents")

    if isinstance(cu_seqlens, (str, bytes, dict, set, frozenset)):
        raise wrong(repr(cu_seqlens))
    try:
        values = list(cu_seqlens.tolist() if hasattr(cu_seqlens, "tolist") else cu_seqlens)
        if len(values) == 1 and hasattr(values[0], "__len__") and not getattr(values[0], "shape", None) == ():
            values = list(values[0].tolist() if hasattr(values[0], "tolist") else values[0])
        if any(isinstance(value, bool) for value in values):
            raise wrong(repr(cu_seqlens))
        bounds = [operator.index(value) for value in values]
    except ArgumentError:
        raise
    except Exception as problem:  # tensors without values, fake ones or on "meta", raise several types
        expected = "" if isinstance(problem, TypeError) else f" ({type(problem).__name__}: {problem})"
        raise wrong(repr(cu_seqlens) + expected) from None
    if any(bound.bit_length() > 62 for bound in bounds):
        raise ArgumentError(f"cu_seqlens: found {max(bounds, key=abs)}, expected integers of 64 bits")
    return bounds


def of_branches(name, tensors):
    """The compressed, selected and window branch's tensor, of one tensor for all or a sequence of three."""
    if isinstance(tensors, (tuple, list)):
        if len(tensors) != len(branches):
            raise ArgumentError(f"{name}: found {len(tensors)} tensors, expected 1 or {len(branches)}, for {branches}")
        return tuple(tensors)
    return (tensors,) * len(branches)


def of_compressor(name, parameters):
    if parameters is None:
        return (None,) * len(parameter_names)
    parameters = dict(parameters)
    if not parameters.keys() <= _parameter_names:
        unknown = min(parameters.keys() - _parameter_names)
        raise ArgumentError(f"{name}: found {unknown!r}, expected of {', '.join(parameter_names)}")
    return tuple(parameters.get(key) for key in parameter_names)


def of_sinks(sinks):
    """The sinks of the selected and of the window branch, of one tensor for both, or two, of which each may be None."""
    if not isinstance(sinks, (tuple, list)):
        return (sinks, sinks)
    if len(sinks) != 2:
        raise ArgumentError(f"sinks: found {len(sinks)} tensors, expected 1 or 2, of the selected and window branch")
    return tuple(sinks)


def flat(q, k, v, gate, compress_k=None, compress_v=None, q_cmp=None, sinks=None):
    """All tensors of a step, in the order of `names`."""
    return (
        (q,)
        + of_branches("k", k)
        + of_branches("v", v)
        + (gate, q_cmp)
        + of_compressor("compress_k", compress_k)
        + of_compressor("compress_v", compress_v)
        + of_sinks(sinks)
    )


def extras_of(given_selection=None, summary_rotation=None, interleaved=False, log_sum_exp=None):
    """Arguments that few steps have, as the extension module takes them; None where a step has none."""
    extras = {}
    if given_selection is not None:
        extras["given"] = given_selection
    if summary_rotation is not None:
        if not isinstance(summary_rotation, (tuple, list)) or len(summary_rotation) != 2:
            raise ArgumentError("summary_rotation: found no pair, expected (cos, sin)")
        extras.update(rotation=tuple(summary_rotation), interleaved=bool(interleaved))
    if log_sum_exp is not None:
        if not isinstance(log_sum_exp, (tuple, list)) or len(log_sum_exp) != 3:
            raise ArgumentError(f"log_sum_exp: found no triple, expected a tensor or None for each of {branches}")
        extras["log_sum_exp"] = tuple(log_sum_exp)
    return extras or None


def indices(k, v, flat):
    """For each flat tensor its index among the different tensors given: the same for branches that share one, -1 where
    none was given."""
    shared = (() if isinstance(k, (tuple, list)) else (2, 3)) + (() if isinstance(v, (tuple, list)) else (5, 6))
    found = []
    next_index = 0
    for position, tensor in enumerate(flat):
        if tensor is None:
            found.append(-1)
        elif position in shared:
            found.append(found[-1])
        else:
            found.append(next_index)
            next_index += 1
    return tuple(found)


first_parameter = names.index("compress_k_pos")


def gradients_of(indices, inputs, allocate):
    """Gradients of the flat inputs, made by allocate(position, tensor), which may return None. Branches that share a
    tensor share a gradient, which receives their sum; a tensor that was given several times has a gradient for each."""
    made = {}
    for position, (index, tensor) in enumerate(zip(indices, inputs)):
        if index >= 0 and index not in made:
            made[index] = allocate(position, tensor)
    return tuple(made.get(index) for index in indices)
