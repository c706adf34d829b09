"""The library's communicator over a torch.distributed process group, which stays the caller's."""

import datetime
import queue
import threading
import time
import weakref

import torch
import torch.distributed as dist

from .. import _core
from ..errors import ArgumentError, CommunicationError, DeadlineError
from .tracing import real_tensors

__all__ = ["communicator_of", "number_layer", "release"]

# Tag of the messages over gloo. The caller's own messages have another, 0 by default.
_tag = 7241

_made = {}  # (group, device) -> communicator, so that all layers of a group share one; keeps the group
_layers, _layers_for_ever = weakref.WeakKeyDictionary(), {}  # group -> layers made with it


def a_communicator_of(group, *devices):
    """The communicator of the group that exists for one of these devices, in this order; otherwise the one for the
    first device. For telling other ranks of a mistake, which may be the device of a tensor."""
    group = group.get_group() if hasattr(group, "get_group") else group
    for device in devices:
        if (group, indexed(device)) in _made:
            return _made[group, indexed(device)]
    return communicator_of(group, devices[0])


def indexed(device) -> torch.device:
    """The device with its index where it is a GPU, without one where it is the CPU."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu") if device.type == "cpu" else device


def communicator_of(group, device, deadline=None):
    """The group's communicator for tensors on `device`; collective the first time.

    None is this process alone. An NCCL group's own ncclComm_t is borrowed where PyTorch gives it out (2.8 and later do)
    and uses the NCCL that this package uses; otherwise a communicator of the same ranks is made, whose id travels
    through the group. A group that moves CPU tensors (gloo) carries the messages itself. `deadline` is in seconds.
    """
    device = indexed(device)
    if isinstance(group, _core.Communicator):
        return group
    if group is None:
        return _core.threads_communicators(1)[0]
    if hasattr(group, "get_group"):  # a DeviceMesh of one dimension
        group = group.get_group()
    if not isinstance(group, dist.ProcessGroup):
        raise ArgumentError(f"group: found {type(group).__name__}, expected a torch.distributed process group that "
                            "this process belongs to, a one-dimensional DeviceMesh, or None")
    key = (group, device)
    if key not in _made:
        _made[key] = _make(group, device)
    communicator = _made[key]
    if deadline is not None:
        communicator.set_deadline(deadline)
    return communicator


def number_layer(group) -> int:
    """The number of the next layer that is made with this group, or communicator, from 1; 0 without one. Ranks that
    make their layers in one order give each layer one number."""
    if group is None:
        return 0
    group = group.get_group() if hasattr(group, "get_group") else group
    counts = _layers if _weakly_referable(group) else _layers_for_ever
    counts[group] = counts.get(group, 0) + 1
    return counts[group]


def release(group=None):
    """Forgets the communicators of this group, or of all: before destroy_process_group()."""
    for key in [key for key in _made if group is None or key[0] is group]:
        _made.pop(key).close()


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
    """The backend of the group that moves this device's tensors; the group itself before PyTorch 2.0."""
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
        own.copy_(_tensor(bytearray(_nccl.unique_id())))
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


# --- gloo, and other backends that move CPU tensors -------------------------------------------------------------------


class _ProcessGroupTransport:
    """The callbacks of a communicator: the group's own sends and receives, on its ranks."""

    def __init__(self, group):
        # The communicator keeps the group; from here it would be a cycle through C++ that nothing collects.
        self._group = weakref.proxy(group) if _weakly_referable(group) else group
        self._ranks = group.size()
        self._rank = group.rank()
        self._deadline = 300.0
        self._waiter = _Waiter()

    def set_deadline(self, seconds):
        self._deadline = seconds

    def exchange(self, sends, receives):
        with real_tensors():
            self._exchange(sends, receives)

    def _exchange(self, sends, receives):
        # A message may still be moved after Ctrl-C has ended the wait for it, so it is moved through memory of its own.
        arrived = [(peer, memory, torch.empty(len(memory), dtype=torch.uint8, device="cpu"))
                   for peer, memory in receives]
        sent = [(peer, _tensor(memory).clone()) for peer, memory in sends]
        # Receives first: a message that arrives finds its buffer.
        works = [("from", peer, self._group.recv([tensor], peer, _tag), tensor) for peer, _, tensor in arrived]
        works += [("to", peer, self._group.send([tensor], peer, _tag), tensor) for peer, tensor in sent]
        self._waiter.run(self._wait, works)
        for _, memory, tensor in arrived:
            _tensor(memory).copy_(tensor)

    def all_gather(self, memory, part):
        parts = [memory[peer * part:(peer + 1) * part] for peer in range(self._ranks)]
        others = [peer for peer in range(self._ranks) if peer != self._rank]
        self.exchange([(peer, parts[self._rank]) for peer in others], [(peer, parts[peer]) for peer in others])

    def _wait(self, works):
        end = time.monotonic() + self._deadline
        for direction, peer, work, _ in works:
            left = max(end - time.monotonic(), 1e-3)
            try:
                finished = work.wait(datetime.timedelta(seconds=left))
            except RuntimeError as error:
                if time.monotonic() >= end:
                    raise DeadlineError(f"waited {self._deadline:g} s for a message {direction} rank {peer}") from error
                raise CommunicationError(f"message {direction} rank {peer}: {error}") from error
            if finished is False:
                raise CommunicationError(f"message {direction} rank {peer}: the process group did not finish it")


class _Waiter:
    """Runs waits on a thread of its own, so that the main thread can be interrupted: Python handles signals only there,
    and not inside a wait of PyTorch's."""

    def __init__(self):
        self._requests = queue.SimpleQueue()
        self._thread = None
        weakref.finalize(self, self._requests.put, None)

    def run(self, function, *args):
        if threading.current_thread() is not threading.main_thread():
            return function(*args)
        if self._thread is None or not self._thread.is_alive():  # not made yet, or lost in a fork
            self._thread = threading.Thread(target=_serve, args=(self._requests,), name="cpnsa waits", daemon=True)
            self._thread.start()
        reply = queue.SimpleQueue()
        self._requests.put((function, args, reply))
        problem, value = reply.get()
        if problem is not None:
            raise problem
        return value


def _serve(requests):
    while True:
        request = requests.get()
        if request is None:
            return
        function, args, reply = request
        try:
            reply.put((None, function(*args)))
        except BaseException as problem:
            reply.put((problem, None))
        request = function = args = reply = None


def _tensor(memory):
    return torch.frombuffer(memory, dtype=torch.uint8)


def _weakly_referable(group):
    try:
        weakref.ref(group)
    except TypeError:
        return False
    return True
