"""How attention runs over one packed sequence: made once, used by any number of layers and steps."""

from typing import Optional, Union

import torch

from .. import _core, tensors
from ..errors import ArgumentError, Refusing
from ..options import AttentionOptions, options_of
from .groups import communicator_of, indexed
from .steps import Steps, dtype_names
from .tracing import like, real_tensors
from .unshard import unshard

__all__ = ["Plan", "partitions"]

_devices = {}

partitions = {
    "zigzag": _core.Partition.zigzag,
    "contiguous": _core.Partition.contiguous,
    "zigzag_per_document": _core.Partition.zigzag_per_document,
}


def _device_of(device):
    """One library device per GPU and process."""
    if device not in _devices:
        if device.type == "cpu":
            _devices[device] = _core.cpu_device()
        elif device.type == "cuda":
            _devices[device] = _core.cuda_device(device.index)
        else:
            raise ArgumentError(f"device: found {device}, expected cpu or cuda")
    return _devices[device]


class Plan:
    """Attention over the packed sequence that `cu_seqlens` bounds, sharded over `group` by `partition`.

    Collective: every rank of the group makes the same plans in the same order. `group` is a process group, a
    one-dimensional DeviceMesh, or None for this process alone; `partition` is "zigzag", "contiguous",
    "zigzag_per_document" (Megatron's layout), or a cpnsa.Partition. `dtype` is the type of q, k, v and gate. `deadline`
    is the longest wait for other ranks, in seconds. `options` are a cpnsa.AttentionOptions; its fields may be given by
    name instead, e.g. Plan(..., refetch_blocks=False).
    """

    def __init__(self, config: _core.Config, cu_seqlens, *, group=None, dtype: torch.dtype = torch.float32,
                 device: Union[str, torch.device] = "cpu", partition: Union[str, _core.Partition] = "zigzag",
                 deadline: Optional[float] = None, options: Optional[AttentionOptions] = None, **keywords):
        self.config = config
        self.group = group
        self.dtype = dtype
        self.device = indexed(device)
        self.communicator = communicator_of(group, self.device)
        with Refusing(self.communicator):
            options = options_of(options, keywords)
            if deadline is not None:
                self.communicator.set_deadline(deadline)
            library_device = _device_of(self.device)
            if dtype not in dtype_names:
                raise ArgumentError(f"dtype: found {dtype}, expected float64, float32, bfloat16 or float16")
            if not isinstance(config, _core.Config):
                raise ArgumentError(f"config: found {type(config).__name__}, expected a cpnsa.Config")
            if isinstance(partition, str) and partition in partitions:
                bounds = tensors.bounds_of(cu_seqlens)
                partition = partitions[partition](bounds, config.select_block, self.communicator.size)
            if not isinstance(partition, _core.Partition):
                raise ArgumentError(f"partition: found {partition!r}, expected one of {', '.join(partitions)}, or a "
                                    "cpnsa.Partition")
            keywords = {**options.to_dict(), "dtype": dtype_names[dtype]}
            if keywords["parameter_gradient_dtype"] is None:
                keywords["parameter_gradient_dtype"] = dtype_names[dtype]
        self.options = options
        self.partition = partition
        attention = _core.Attention(config, partition, library_device, self.communicator, **keywords)
        #: What runs; apart from the plan, so that a graph that holds it does not hold the plan.
        self.steps = Steps(attention, config, dtype, self.device, options.backward, self.communicator.size)
        self.backward = options.backward
        self.row_count = attention.rows
        self.saved_bytes = attention.saved_bytes
        self.workspace_bytes = attention.workspace_bytes
        with real_tensors():
            self.token = torch.from_dlpack(_core.token(self.steps))
            rows = torch.from_dlpack(partition.global_rows(self.communicator.rank))
            bounds = torch.tensor(partition.cu_seqlens, device="cpu")
            #: The token of the packed sequence that each local row is: int64 [rows], on the plan's device.
            self.rows = rows.to(self.device)
            positions = rows - bounds[torch.bucketize(rows, bounds, right=True) - 1]
            #: Each local row's position in its document, e.g. for rotary embeddings: int64 [rows].
            self.positions = positions.to(self.device)
            self.steps.positions = positions

    def shard(self, packed: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """This rank's rows of a tensor that every rank has whole."""
        if packed.shape[dim] != self.partition.tokens:
            raise ArgumentError(f"shard: found {packed.shape[dim]} tokens in dimension {dim}, expected "
                                f"{self.partition.tokens}")
        return packed.index_select(dim, like(self.rows, packed).to(packed.device))

    def unshard(self, rows: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """The whole packed tensor on every rank, of each rank's rows in dimension `dim`; collective, and so is its
        backward, in which a rank's rows get the sum of all ranks' gradients."""
        if rows.shape[dim] != self.row_count:
            raise ArgumentError(f"unshard: found {rows.shape[dim]} rows in dimension {dim}, expected "
                                f"{self.row_count}")
        if self.partition.ranks > 1 and isinstance(self.group, _core.Communicator):
            raise ArgumentError("unshard: found a plan over a cpnsa.Communicator, expected one over a process group")
        return unshard(rows, self, dim)

    def statistics(self) -> dict:
        """Bytes, blocks and times of the last forward and its backward on this rank; waits for them."""
        return self.steps.attention.statistics()

    def record(self) -> _core.StepRecord:
        """This rank's part of the last step, stage by stage, of a plan made with timing=True; waits for it."""
        return self.steps.attention.record()

    def close(self) -> None:
        """Frees what the plan holds; a later call raises ArgumentError."""
        self.steps.attention.close()
