"""The library's communicator over a torch.distributed process group, which stays the caller's."""

import datetime
import time
import weakref

import torch
import torch.distributed as dist

from .. import _core
from ..errors import ArgumentError, CommunicationError, DeadlineError

# Of the messages over gloo; apart from the caller's own, whose tag is 0 unless they say otherwise.
_tag = 7241

_made = {}  # (group's id, device) -> (group, communicator), so that all layers of a group share one


def communicator_of(group, device, deadline=None):
    """The group's communicator for tensors on `device`; collective the first time.

    None is this process alone. An NCCL group's own ncclComm_t is borrowed where PyTorch gives it out (2.8 and later do)
    and uses the NCCL that this package uses; otherwise a communicator of the same ranks is made, whose id travels
    through the group. A group that moves CPU tensors (gloo) carries the messages itself. `deadline` is in seconds.
    """
    device = torch.device(device)
    if isinstance(group, _core.Communicator):
        return group
    if group is None:
        return _core.threads_communicators(1)[0]
    if hasattr(group, "get_group"):  # a DeviceMesh of one dimension
        group = group.get_group()
    if not isinstance(group, dist.ProcessGroup):
        raise ArgumentError(f"group: found {type(group).__name__}, expected a torch.distributed process group that "
                            "this process belongs to, a one-dimensional DeviceMesh, or None")
    key = (id(group), device)
    if key not in _made:
        _made[key] = (group, _make(group, device))
    communicator = _made[key][1]
    if deadline is not None:
        communicator.set_deadline(deadline)
    return communicator


def release(group=None):
    """Forgets the communicators of this group, or of all: before destroy_process_group()."""
    for key in [key for key, (of, _) in _made.items() if group is None or of is group]:
        _made.pop(key)[1].close()


def _make(group, device):
    if group.size() == 1:
        return _core.threads_communicators(1)[0]
    if device.type == "cuda" and _backend_name(group, device) == "nccl":
        return _over_nccl(group, device)
    if _backend_name(group, torch.device("cpu")) == "nccl":
        raise ArgumentError(f"group: found one of NCCL, expected one that moves {device.type} tensors, e.g. of gloo")
    transport = _ProcessGroupTransport(group)
    return _core.callback_communicator(group.rank(), group.size(), transport.exchange, transport.all_gather,
                                       transport.set_deadline, group)


def _backend(group, device):
    """What of the group moves this device's tensors; the group itself before PyTorch 2.0."""
    if not hasattr(group, "_get_backend"):
        return group
    try:
        return group._get_backend(device)
    except RuntimeError:  # it has none for this device
        return None


def _backend_name(group, device):
    backend = _backend(group, device)
    if backend is None:
        return "none"
    if "NCCL" in type(backend).__name__:
        return "nccl"
    return "gloo" if "Gloo" in type(backend).__name__ else dist.get_backend(group)


# --- NCCL -------------------------------------------------------------------------------------------------------


def _over_nccl(group, device):
    try:
        from .. import _nccl
    except ImportError as error:
        raise ArgumentError(f"group: found one of NCCL, and a cpnsa built without it ({error}); expected one installed "
                            "with --config-settings=cmake.define.CPNSA_CUDA=ON, or a group of gloo") from error
    # The group's communicator is made by its first collective.
    own = torch.zeros(_nccl.id_bytes, dtype=torch.uint8, device=device)
    if group.rank() == 0:
        own.copy_(torch.frombuffer(bytearray(_nccl.unique_id()), dtype=torch.uint8))
    ids = [torch.empty_like(own) for _ in range(group.size())]
    dist.all_gather(ids, own, group=group)

    backend = _backend(group, device)
    with torch.cuda.device(device):
        pointer = backend._comm_ptr() if hasattr(backend, "_comm_ptr") else 0
        borrowed = pointer != 0 and tuple(torch.cuda.nccl.version()) == _nccl.version()
        everywhere = torch.tensor([int(borrowed)], device=device)
        dist.all_reduce(everywhere, op=dist.ReduceOp.MIN, group=group)
        if everywhere.item():
            return _nccl.borrow(pointer, group)
        return _nccl.create(bytes(ids[0].cpu().tolist()), group.size(), group.rank(), device.index, group)


# --- gloo, and whatever else moves CPU tensors -------------------------------------------------------------------


class _ProcessGroupTransport:
    """The callbacks of a communicator: the group's own sends and receives, on its ranks."""

    def __init__(self, group):
        # The communicator keeps the group; from here it would be a cycle through C++ that nothing collects.
        self._group = weakref.proxy(group) if _weakly_referable(group) else group
        self._ranks = group.size()
        self._rank = group.rank()
        self._deadline = 300.0

    def set_deadline(self, seconds):
        self._deadline = seconds

    def exchange(self, sends, receives):
        # Receives first: what arrives finds its place.
        works = [("from", peer, self._group.recv([_tensor(memory)], peer, _tag)) for peer, memory in receives]
        works += [("to", peer, self._group.send([_tensor(memory)], peer, _tag)) for peer, memory in sends]
        self._wait(works)

    def all_gather(self, memory, part):
        parts = [memory[peer * part:(peer + 1) * part] for peer in range(self._ranks)]
        others = [peer for peer in range(self._ranks) if peer != self._rank]
        self.exchange([(peer, parts[self._rank]) for peer in others], [(peer, parts[peer]) for peer in others])

    def _wait(self, works):
        end = time.monotonic() + self._deadline
        for direction, peer, work in works:
            left = max(end - time.monotonic(), 1e-3)
            try:
                finished = work.wait(datetime.timedelta(seconds=left))
            except RuntimeError as error:
                if time.monotonic() >= end:
                    raise DeadlineError(f"waited {self._deadline:g} s for a message {direction} rank {peer}") from error
                raise CommunicationError(f"message {direction} rank {peer}: {error}") from error
            if finished is False:
                raise CommunicationError(f"message {direction} rank {peer}: the process group did not finish it")


def _tensor(memory):
    return torch.frombuffer(memory, dtype=torch.uint8)


def _weakly_referable(group):
    try:
        weakref.ref(group)
    except TypeError:
        return False
    return True
