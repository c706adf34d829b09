"""Paged KV caches on PyTorch tensors: prefill and decoding of NativeSparseAttention."""

from typing import List, Optional, Sequence, Union

import torch

from .. import _core, tensors
from ..errors import ArgumentError
from .groups import communicator_of, indexed
from .plan import _device_of
from .steps import _current_stream, dense, dtype_names

__all__ = ["KvCache", "Step", "StepOfLayer"]

_parts = _core.cache_parts


class KvCache:
    """The caches of `layers` layers of one configuration, for `sequences` sequences of up to `max_length` tokens.

    Each sequence's tokens lie in pages that are handed out as it grows. A step appends tokens to the sequences:

        with cache.step(1) as step:               # a token for every sequence; or a list with a number for each
            for i, layer in enumerate(layers):
                x = layer(x, cache=step[i])       # x [sequences, 1, hidden], or [rows, hidden]

    `layer(x, cache=cache)` is the same for a cache of one layer. `branch_kv` is that of the layers. With `group`, a
    process group, the sequences' pages are dealt out to its ranks; every rank is given the same x. `page` is the number
    of tokens of a page, 0 the smallest; `replicate_summaries` holds all summaries on every rank. `checked` makes each
    step check its batch on the host and over the ranks. With `compare_parameters` each layer's first step makes sure
    that all ranks hold the same compressors, which waits for the device: capture a CUDA graph after it.
    """

    def __init__(self, config: _core.Config, sequences: int, max_length: int, *, layers: int = 1, group=None,
                 dtype: torch.dtype = torch.float32, device: Union[str, torch.device] = "cpu", branch_kv: bool = True,
                 page: int = 0, summary_page: int = 0, replicate_summaries: bool = False, checked: bool = False,
                 compare_parameters: bool = True, seed: Optional[int] = None):
        if dtype not in dtype_names:
            raise ArgumentError(f"dtype: found {dtype}, expected one of {', '.join(map(str, dtype_names))}")
        for name, value in (("sequences", sequences), ("max_length", max_length), ("layers", layers)):
            if not isinstance(value, int) or value < 1:
                raise ArgumentError(f"{name}: found {value!r}, expected a whole number of at least 1")
        self.config, self.sequences, self.max_length, self.dtype = config, sequences, max_length, dtype
        self.device = indexed(torch.device(device))
        self._library_device = _device_of(self.device)
        self._communicator = communicator_of(group, self.device)
        self._options = dict(dtype=dtype_names[dtype], page=page, summary_page=summary_page,
                             shared_branches=not branch_kv, replicate_summaries=replicate_summaries, checked=checked,
                             compare_parameters=compare_parameters, max_sequences=sequences, max_length=max_length)
        self._decoders, self._schedules = {}, {}
        decoder = self.decoder_for(sequences)
        own = [part for part in _parts if decoder.pages_with(part) == part]
        # Two pages more for each sequence, so that reorder() can copy those that are not full.
        self._pages = {part: sequences * (decoder.pages_for(part, max_length) + 2) if part in own else 0
                       for part in _parts}
        self._slots = 2 * sequences  # reorder() fills the free ones
        self._allocator = _core.PageAllocator(decoder, *(self._pages[part] for part in _parts), self._slots, max_length,
                                              seed)
        self._slot_of = list(range(sequences))
        self._lengths = [0] * self._slots
        self._step = None
        ints = {"dtype": torch.int32, "device": self.device}
        self._device_slots = torch.arange(sequences, **ints)
        self._device_lengths = torch.zeros(self._slots, **ints)
        self._device_cu_q = torch.zeros(sequences + 1, **ints)
        self._tables = {part: self._table_of(part).to(self.device) for part in own}
        self._pools = [self._make_pools(decoder, own) for _ in range(layers)]

    def _make_pools(self, decoder, own):
        pools = {}
        for part in own:
            k, v = decoder.pool_shapes(part, self._pages[part])
            pools[part] = tuple(torch.empty(shape, dtype=self.dtype, device=self.device) for shape in (k, v))
        return pools

    def decoder_for(self, tokens: int) -> _core.Decoder:
        """The library's decoder for steps of up to `tokens` rows, of the next power of two; collective where new."""
        size = 1 << max(0, tokens - 1).bit_length()
        if size not in self._decoders:
            made = _core.Decoder(self.config, self._library_device, self._communicator, max_tokens=size,
                                 **self._options)
            self._decoders[size] = made
            self._schedules[made] = torch.empty(made.schedule_bytes, dtype=torch.uint8, device=self.device)
        return self._decoders[size]

    @property
    def layers(self) -> int:
        return len(self._pools)

    @property
    def lengths(self) -> List[int]:
        """The tokens of each sequence."""
        return [self._lengths[slot] for slot in self._slot_of]

    @property
    def bytes(self) -> int:
        """Memory of the pools of all layers on this rank."""
        return sum(pool.numel() * pool.element_size() for pools in self._pools for pair in pools.values()
                   for pool in pair)

    def statistics(self) -> dict:
        """Steps, messages and bytes received, of all decoders together."""
        total = {"steps": 0, "messages": 0, "bytes_received": {}}
        for decoder in self._decoders.values():
            one = decoder.statistics()
            total["steps"] += one["steps"]
            total["messages"] += one["messages"]
            for kind, count in one["bytes_received"].items():
                total["bytes_received"][kind] = total["bytes_received"].get(kind, 0) + count
        return total

    def step(self, counts: Union[int, Sequence[int]] = 1) -> "Step":
        """A step that appends counts[i] tokens to sequence i, or as many to each; 0 leaves a sequence out. A context:
        its end, without an exception, adds the tokens to the lengths."""
        if isinstance(counts, int):
            counts = [counts] * self.sequences
        counts = [int(count) for count in counts]
        if len(counts) != self.sequences or min(counts) < 0:
            raise ArgumentError(f"counts: found {counts}, expected {self.sequences} whole numbers of at least 0")
        return Step(self, counts)

    def cut(self, sequence: int, length: int) -> None:
        """Cuts a sequence back to `length` tokens: rejected tokens of a draft, for example."""
        slot = self._slot(sequence)
        if not 0 <= length <= self._lengths[slot]:
            raise ArgumentError(f"length: found {length}, expected 0 to {self._lengths[slot]}, the sequence's")
        self._copy(self._allocator.cut(slot, length))
        self._lengths[slot] = length

    def release(self, sequence: int) -> None:
        """Empties a sequence, so that another one can begin."""
        slot = self._slot(sequence)
        self._allocator.release(slot)
        self._lengths[slot] = 0

    def fork(self, source: int, target: int, tokens: Optional[int] = None) -> None:
        """Makes the empty sequence `target` begin with the first `tokens` tokens of `source`, or all of them. Full
        pages are shared."""
        one, other = self._slot(source), self._slot(target)
        tokens = self._lengths[one] if tokens is None else tokens
        if not 0 <= tokens <= self._lengths[one]:
            raise ArgumentError(f"tokens: found {tokens}, expected 0 to {self._lengths[one]}, the source's")
        self._copy(self._allocator.fork(one, other, tokens))
        self._lengths[other] = tokens

    def reorder(self, indices: Sequence[int]) -> None:
        """Makes sequence i what sequence indices[i] was, as beam search does. Full pages are shared."""
        indices = [int(index) for index in indices]
        if len(indices) != self.sequences:
            raise ArgumentError(f"indices: found {len(indices)}, expected {self.sequences}")
        old = [self._slot(index) for index in indices]
        free = sorted(set(range(self._slots)) - set(self._slot_of))
        taken, new = set(), []
        for slot in old:
            if slot not in taken:  # moves as it is
                taken.add(slot)
                new.append(slot)
                continue
            copy = free.pop()
            new.append(copy)
            self._copy(self._allocator.fork(slot, copy, self._lengths[slot]))
            self._lengths[copy] = self._lengths[slot]
        for slot in set(self._slot_of) - taken:
            self._allocator.release(slot)
            self._lengths[slot] = 0
        self._slot_of = new

    def _slot(self, sequence):
        if not 0 <= sequence < self.sequences:
            raise ArgumentError(f"sequence: found {sequence}, expected 0 to {self.sequences - 1}")
        return self._slot_of[sequence]

    def _copy(self, copies):
        for part, source, target in copies:
            for pools in self._pools:
                for pool in pools[part]:
                    pool[target].copy_(pool[source])

    def _table_of(self, part):
        return torch.from_dlpack(self._allocator.table(part))

    def _upload(self, counts):
        """Gives the sequences their pages and writes the step's arrays, in place, as a captured graph reads them."""
        for slot, count in zip(self._slot_of, counts):
            self._allocator.reserve(slot, self._lengths[slot] + count)
        cu_q = [0]
        for count in counts:
            cu_q.append(cu_q[-1] + count)
        self._device_slots.copy_(torch.tensor(self._slot_of, dtype=torch.int32))
        self._device_lengths.copy_(torch.tensor(self._lengths, dtype=torch.int32))
        self._device_cu_q.copy_(torch.tensor(cu_q, dtype=torch.int32))
        for part, table in self._tables.items():
            table.copy_(self._table_of(part))

    def _pools_of(self, layer):
        """The tensors of one layer in the order that the library takes them in."""
        pools = self._pools[layer]
        none = (None, None)
        of_branches = [pools.get(part, none) for part in _parts[:3]]
        return [k for k, _ in of_branches] + [v for _, v in of_branches] + list(pools[_parts[3]])


class Step:
    """One step of a cache: `step[i]` is what layer i is given. Made by KvCache.step()."""

    def __init__(self, cache: KvCache, counts: List[int]):
        self.cache, self.counts, self.rows = cache, counts, sum(counts)
        self._decoder = cache.decoder_for(max(1, self.rows))
        self._positions = None

    def __enter__(self) -> "Step":
        cache = self.cache
        if cache._step is not None:
            raise ArgumentError("step: found one that has not ended, expected one at a time")
        self.load()
        self.prepare()
        cache._step = self
        return self

    def __exit__(self, kind, problem, trace) -> None:
        self.cache._step = None
        if kind is None:
            self.advance()

    def load(self) -> None:
        """The host's part: pages for the new tokens, and the arrays in device memory. Not captured in a graph, but done
        before each replay."""
        self.cache._upload(self.counts)
        starts = [self.cache._lengths[slot] for slot in self.cache._slot_of]
        positions = [start + i for start, count in zip(starts, self.counts) for i in range(count)]
        new = torch.tensor(positions, dtype=torch.int64)
        if self._positions is None:
            self._positions = new.to(self.cache.device)
        else:
            self._positions.copy_(new)

    def prepare(self) -> None:
        """The device's part, once for all layers; may be captured in a graph."""
        cache = self.cache
        tables = [cache._tables.get(part) for part in _parts]
        pool_pages = [cache._pages[part] for part in _parts]
        self._decoder.prepare(cache.sequences, self.rows, cache._slots, cache._device_slots, cache._device_lengths,
                              cache._device_cu_q, tables, pool_pages, cache._schedules[self._decoder], self._stream())

    def advance(self) -> None:
        """Adds the step's tokens to the lengths."""
        for slot, count in zip(self.cache._slot_of, self.counts):
            self.cache._lengths[slot] += count

    @property
    def positions(self) -> torch.Tensor:
        """int64 [rows]: the position of each row in its sequence."""
        return self._positions

    def __getitem__(self, layer: int) -> "StepOfLayer":
        if not 0 <= layer < self.cache.layers:
            raise ArgumentError(f"layer: found {layer}, expected 0 to {self.cache.layers - 1}")
        return StepOfLayer(self, layer)

    def _stream(self):
        device = self.cache.device
        return _current_stream(device.index) if device.type == "cuda" else 0


class StepOfLayer:
    """A step's part of one layer's cache."""

    def __init__(self, step: Step, layer: int):
        self.step, self.layer = step, layer

    @torch.no_grad()
    def attention(self, q, k, v, gate, compress_k: Optional[dict] = None, compress_v: Optional[dict] = None, *,
                  selected: Optional[torch.Tensor] = None,
                  log_sum_exp: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Appends k and v (one tensor each, or three) to the cache; out [rows, H, d_v] of q [rows, H, d_qk].

        `selected` int32 [rows, G, n] and `log_sum_exp` float [3, rows, H], if given, are written."""
        step, cache = self.step, self.step.cache
        given = tensors.flat(q, k, v, gate, compress_k, compress_v)
        indices = tensors.indices(k, v, given)
        unique = []
        for tensor, index in zip(given, indices):
            if index == len(unique):
                unique.append(dense(tensor.detach().to(cache.dtype)))
        made = {"device": cache.device}
        out = torch.empty((step.rows, cache.config.num_q_heads, cache.config.head_dim_v), dtype=cache.dtype, **made)
        workspace = torch.empty(step._decoder.workspace_bytes, dtype=torch.uint8, **made)
        step._decoder.step(unique, cache._pools_of(self.layer), out, selected, log_sum_exp, workspace, step._stream(),
                           indices, self.layer)
        return out
