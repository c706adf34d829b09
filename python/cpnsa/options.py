"""The options of one layer beside its configuration: one list, which NumPy's layer and PyTorch's plan share."""

import dataclasses
from typing import Optional

from .errors import ArgumentError

__all__ = ["AttentionOptions", "options_of"]


@dataclasses.dataclass(frozen=True)
class AttentionOptions:
    """How a layer runs. All ranks of a group are given the same options, except `timing`.

    None of them changes which blocks are selected.
    """

    #: How blocks of other ranks are moved: "fetch", "gather", "pull" (over threads), or "auto", which decides per call.
    exchange: str = "auto"
    #: False keeps nothing for a backward.
    backward: bool = True
    #: False keeps the blocks of other ranks for the backward, which otherwise fetches them again.
    refetch_blocks: bool = True
    #: True keeps no branch outputs for the backward, which then computes them again.
    recompute_branches: bool = False
    #: True lets the backward reuse the saved memory: it needs less, and is the only backward of its forward.
    reuse_saved: bool = False
    #: True sums the gradients of the compressors over the ranks; False leaves each rank its share.
    sum_parameter_gradients: bool = False
    #: True measures the stages of each call; see statistics().
    timing: bool = False
    #: True compares the parameters of the compressors over the ranks in the first forward of each layer.
    compare_parameters: bool = True
    #: True where inputs have a query of their own for the compressed branch.
    compressed_query: bool = False
    #: True where inputs may have attention sinks.
    sinks: bool = False
    #: True where inputs have the blocks that queries read, in place of importance.
    given_selection: bool = False
    #: Types of the gradients: None, or the name of a type that the layer computes or accumulates in.
    gradient_dtype: Optional[str] = None
    parameter_gradient_dtype: Optional[str] = None

    def to_dict(self) -> dict:
        """The keyword arguments that make an equal one."""
        return dataclasses.asdict(self)


def options_of(options: Optional[AttentionOptions], keywords: dict) -> AttentionOptions:
    """The options of a call that takes them as one object or their fields by name."""
    if options is not None and keywords:
        raise ArgumentError(f"options: found them, and {', '.join(keywords)} by name; expected one of the two")
    unknown = keywords.keys() - {field.name for field in dataclasses.fields(AttentionOptions)}
    if unknown:
        known = ", ".join(field.name for field in dataclasses.fields(AttentionOptions))
        raise TypeError(f"found an unexpected keyword argument {min(unknown)!r}, expected one of {known}")
    return options or AttentionOptions(**keywords)
