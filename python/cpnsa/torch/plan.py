"""How attention runs over one packed sequence: made once, used by any number of layers and steps."""

import itertools
import weakref

import torch

from .. import _core, tensors
from ..errors import ArgumentError, Refusing, refuse
from .groups import communicator_of

if hasattr(torch._C, "_cuda_getCurrentRawStream"):  # not where PyTorch was built without CUDA; a tenth of the time
    _current_stream = torch._C._cuda_getCurrentRawStream
else:

    def _current_stream(index):
        return torch.cuda.current_stream(index).cuda_stream


_plans = weakref.WeakValueDictionary()  # by handle, for compiled graphs, which carry numbers and tensors
_handles = itertools.count(1)
_devices = {}

partitions = {
    "zigzag": _core.Partition.zigzag,
    "contiguous": _core.Partition.contiguous,
    "zigzag_per_document": _core.Partition.zigzag_per_document,
}


def of_handle(handle):
    plan = _plans.get(handle)
    if plan is None:
        raise ArgumentError(f"plan: found handle {handle}, whose plan is gone, expected that of a living one")
    return plan


def _device_of(device):
    """One library device a card and process."""
    if device not in _devices:
        if device.type == "cpu":
            _devices[device] = _core.cpu_device()
        elif device.type == "cuda":
            _devices[device] = _core.cuda_device(device.index)
        else:
            raise ArgumentError(f"device: found {device}, expected cpu or cuda")
    return _devices[device]


def _indexed(device):
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu") if device.type == "cpu" else device


class Plan:
    """Attention over the packed sequence that `cu_seqlens` bounds, sharded over `group` by `partition`.

    Collective: every rank of the group makes the same plans in the same order. `group` is a process group, a
    one-dimensional DeviceMesh, or None for this process alone; `partition` is "zigzag", "contiguous",
    "zigzag_per_document" (Megatron's layout), or a cpnsa.Partition. `dtype` is the type of q, k, v and gate.
    `backward=False` keeps nothing for a backward; `refetch_blocks=False` keeps other ranks' blocks for it, which are sent
    twice otherwise; `recompute_branches` keeps no branch's output, but computes them again; with `reuse_saved` a
    backward needs less memory and is the only one of its forward (no retain_graph). With
    `sum_parameter_gradients` the compressors' gradients are summed over the group here; without it they are this rank's
    share, as those of all other parameters are.
    """

    def __init__(self, config, cu_seqlens, *, group=None, dtype=torch.float32, device="cpu", partition="zigzag",
                 exchange="auto", backward=True, refetch_blocks=True, recompute_branches=False, reuse_saved=False,
                 sum_parameter_gradients=False, timing=False, deadline=None):
        from . import dtype_names

        self.config = config
        self.dtype = dtype
        self.device = _indexed(device)
        self._card = self.device.index
        self.backward = backward
        self.communicator = communicator_of(group, self.device)
        with Refusing(self.communicator):
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
        self.partition = partition
        self._attention = _core.Attention(
            config, partition, library_device, self.communicator, dtype=dtype_names[dtype], exchange=exchange,
            parameter_gradient_dtype=dtype_names[dtype], backward=backward, refetch_blocks=refetch_blocks,
            recompute_branches=recompute_branches, reuse_saved=reuse_saved,
            sum_parameter_gradients=sum_parameter_gradients, timing=timing)
        self.row_count = self._attention.rows
        self.saved_bytes = self._attention.saved_bytes
        self.workspace_bytes = self._attention.workspace_bytes
        self.head_dim_v = config.head_dim_v  # plain numbers: compilers do not look into a Config
        self.out_shape = (self.row_count, config.num_q_heads, config.head_dim_v)
        rows = torch.from_dlpack(partition.global_rows(self.communicator.rank))
        bounds = torch.tensor(partition.cu_seqlens)
        #: The token of the packed sequence that each local row is: int64 [rows], on the plan's device.
        self.rows = rows.to(self.device)
        #: Each local row's position in its document, e.g. for rotary embeddings: int64 [rows].
        self.positions = (rows - bounds[torch.bucketize(rows, bounds, right=True) - 1]).to(self.device)
        self.handle = next(_handles)
        _plans[self.handle] = self

    def shard(self, packed, dim=0):
        """This rank's rows of a tensor that every rank has whole."""
        if packed.shape[dim] != self.partition.tokens:
            raise ArgumentError(f"shard: found {packed.shape[dim]} tokens in dimension {dim}, expected "
                                f"{self.partition.tokens}")
        return packed.index_select(dim, self.rows.to(packed.device))

    def statistics(self):
        """What the last forward and the backward after it did on this rank; waits for them."""
        return self._attention.statistics()

    def refusing(self):
        """A context for what this rank does on its way to a step; see Refusing."""
        return Refusing(self._attention)

    def refuse(self, problem):
        """What refusing() does; a step costs less with `try`."""
        refuse(self._attention, problem)

    def close(self):
        """Frees what the plan holds; a later call raises ArgumentError."""
        self._attention.close()

    def forward_step(self, places, unique, selected=None):
        """out, and what a backward needs: the library's Saved and its memory."""
        try:
            out = torch.empty(self.out_shape, dtype=self.dtype, device=self.device)
            # Of PyTorch's caching allocator, which may hand them on as soon as this stream has passed the step.
            workspace = torch.empty(self.workspace_bytes, dtype=torch.uint8, device=self.device)
            memory = torch.empty(self.saved_bytes, dtype=torch.uint8, device=self.device)
            state = _core.Saved() if self.backward else None
        except Exception as problem:
            self.refuse(problem)
            raise
        self._attention.forward(unique, out, selected, state, memory, workspace, self._stream(), places)
        return out, state, memory

    def expect_backward(self):
        if not self.backward:
            raise ArgumentError("backward: found a plan made with backward=False, expected one made for it")

    def backward_step(self, places, unique, dout, state, memory, needed):
        """Gradients of the `unique` tensors, None for parameters that are not `needed`."""
        try:
            if False in needed:
                first = max(places[:tensors.first_parameter]) + 1  # of the parameters among `unique`
                gradients = [torch.empty_like(tensor) if need or index < first else None
                             for index, (tensor, need) in enumerate(zip(unique, needed))]
            else:
                gradients = list(map(torch.empty_like, unique))
            workspace = torch.empty(self.workspace_bytes, dtype=torch.uint8, device=self.device)
        except Exception as problem:
            self.refuse(problem)
            raise
        self._attention.backward(unique, dout, state, memory, gradients, workspace, self._stream(), places)
        return gradients

    def _stream(self):
        return 0 if self._card is None else _current_stream(self._card)
