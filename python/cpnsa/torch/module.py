"""The layer with its projections, gates and compressors."""

import contextlib
import copy
import math
from typing import Callable, Optional, Tuple, Union

import torch
from torch import nn

from .. import _core, tensors
from ..errors import ArgumentError, Refusing
from .documents import bounds_of_mask, bounds_of_positions
from .full import full_attention
from .function import attention
from .groups import a_communicator_of, number_layer
from .kv_cache import KvCache, StepOfLayer
from .plan import Plan
from .plan_cache import PlanCache
from .tracing import compiling, like, real_tensors, uncompiled

__all__ = ["Compressor", "NativeSparseAttention"]


class Compressor(nn.Module):
    """The parameters that turn blocks of keys, or of values, into their summaries; shapes in docs/algorithm.md.

    As initialised, `mean` and `linear` compressors take the mean of a block; `mlp` has the usual variance-keeping
    normal weights. With `part=(i, n)` the module holds KV heads of part i of a compressor that is split by heads into n
    equal parts, as over tensor-parallel ranks: random numbers are drawn for the whole and cut, so that from one seed
    the parts together are the same for every n.
    """

    def __init__(self, config: _core.Config, dim: int, hidden: int = 0, *, position: bool = True,
                 part: Tuple[int, int] = (0, 1), device=None, dtype: Optional[torch.dtype] = None):
        super().__init__()
        groups, length = config.num_kv_heads, config.compress_block
        self.kind, self.dim, self.length, self.part = config.compressor, dim, length, tuple(part)
        made = {"device": device, "dtype": dtype}
        shapes = {"pos": (groups, length, dim)} if position else {}
        if self.kind == "linear":
            shapes["weight"] = (groups, length * dim, dim)
        elif self.kind == "mlp":
            shapes.update(w1=(groups, length * dim, hidden), b1=(groups, hidden), w2=(groups, hidden, dim),
                          b2=(groups, dim))
        self.names = tuple(shapes)
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape, **made)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        with torch.no_grad():
            for name, parameter in self.named_parameters(recurse=False):
                if name == "pos":
                    self._normal(parameter, 0.02)
                elif name == "weight":
                    mean = torch.eye(self.dim, dtype=torch.float32, device="cpu").repeat(self.length, 1) / self.length
                    parameter.copy_(_like(parameter, mean.expand_as(parameter)))
                elif name in ("w1", "w2"):
                    self._normal(parameter, 1.0 / math.sqrt(parameter.shape[1]))
                else:
                    parameter.zero_()

    def _normal(self, parameter, deviation):
        index, parts = self.part
        if parts == 1:
            parameter.normal_(0.0, deviation)
            return
        groups = parameter.shape[0]
        whole = torch.empty((parts * groups, *parameter.shape[1:]), dtype=parameter.dtype, device=parameter.device)
        whole.normal_(0.0, deviation)
        parameter.copy_(_like(parameter, whole[index * groups:(index + 1) * groups]))

    def tensors(self) -> dict:
        # By name: wrappers (FSDP, parametrisations) put tensors where parameters were.
        return {name: _local(getattr(self, name)) for name in self.names}

    def forward(self, use: Optional[Callable] = None, *args):
        """use(tensors(), *args), the work that needs the parameters; the tensors themselves without it.

        Wrappers gather parameters before a module's forward() and free them after it (FSDP, Megatron's overlapped
        gathering), so the work is done inside."""
        return self.tensors() if use is None else use(self.tensors(), *args)

    def extra_repr(self):
        shapes = ", ".join(f"{name}={list(getattr(self, name).shape)}" for name in self.names)
        return f"{self.kind!r}, {shapes}" if shapes else repr(self.kind)


class _Projection(nn.Linear):
    """A linear layer with the layer's initialisation as its own: wrappers reset module by module."""

    def reset_parameters(self):
        nn.init.xavier_uniform_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class _GateProjection(nn.Linear):
    def reset_parameters(self):
        nn.init.normal_(self.weight, 0.0, 0.02)
        nn.init.zeros_(self.bias)  # gates begin half open


def _local(tensor):
    """This rank's part of a DTensor (parallel.py); any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _like(parameter, whole):
    """`whole`, laid out as a parameter that FSDP2 has sharded is."""
    if not hasattr(parameter, "device_mesh"):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole.to(parameter.device, parameter.dtype), parameter.device_mesh, parameter.placements)


class NativeSparseAttention(nn.Module):
    """Native sparse attention over this rank's rows of a packed sequence: x [rows, hidden] -> [rows, hidden].

    `config` is a cpnsa.Config. With `branch_kv`, the default, each branch has keys and values of its own, as in the
    paper; without it the branches share one key and one value projection. `group` is the context-parallel process
    group, or None. `rotary(x, positions)`, if given, turns queries and keys [rows, heads, d_qk] by their positions in
    their documents [rows].

    `summaries` says what the compressed branch and importance know of positions: "rotated" (keys are rotated, then
    compressed), "unrotated" (neither its keys nor its queries are rotated), or a function: keys are compressed, then
    summaries are rotated by (cos, sin) = summaries(first, last), [n, pairs], of the positions [n] of the summaries'
    first and last tokens, with pairs of channels half of the rotated ones apart. With `sinks` the selected and the
    window branch have a learnable logit per head that has no value, the parameters `sink_slc` and `sink_win` [H].
    `attention="full"` makes the layer compute full causal attention over the selected branch's keys and values, without
    gates, to compare with; its parameters stay the same. `operator` is that of cpnsa.torch.attention.

    `bias` gives the projections of q, k, v and the output a bias, `position` the compressors a
    position encoding.

    Parameters are the same on all ranks of the group (from one seed, say, or by broadcast). Each rank's gradients are
    those of its own rows: they are summed over the group as in data parallelism, those of the compressors too.
    """

    def __init__(self, hidden: int, config: _core.Config, *, group=None, partition="zigzag", exchange: str = "auto",
                 branch_kv: bool = True, bias: bool = False, position: bool = True,
                 rotary: Optional[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = None,
                 summaries: Union[str, Callable] = "rotated", sinks: bool = False, attention: str = "sparse",
                 operator: bool = False, device=None, dtype: Optional[torch.dtype] = None):
        super().__init__()
        if attention not in ("sparse", "full"):
            raise ArgumentError(f"attention: found {attention!r}, expected 'sparse' or 'full'")
        if summaries not in ("rotated", "unrotated") and not callable(summaries):
            raise ArgumentError(f"summaries: found {summaries!r}, expected 'rotated', 'unrotated' or a function")
        if summaries != "rotated" and rotary is None:
            raise ArgumentError(f"summaries: found {summaries!r} without rotary, expected 'rotated'")
        if config.gate != "logits":
            raise ArgumentError(f"gate: found '{config.gate}', expected 'logits', which this layer computes")
        made = {"device": device, "dtype": dtype}
        self.hidden, self.config, self.rotary = hidden, config, rotary
        self.group, self.partition, self.exchange = group, partition, exchange
        self.branches = 3 if branch_kv else 1
        self.summaries, self.attention, self.operator = summaries, attention, operator
        self._plans = PlanCache()
        self._number_itself()
        H, G, d_qk, d_v = config.num_q_heads, config.num_kv_heads, config.head_dim_qk, config.head_dim_v
        self.num_q_heads, self.num_kv_heads, self.head_dim_qk, self.head_dim_v = H, G, d_qk, d_v
        self.q_proj = _Projection(hidden, H * d_qk, bias=bias, **made)
        self.k_proj = _Projection(hidden, self.branches * G * d_qk, bias=bias, **made)
        self.v_proj = _Projection(hidden, self.branches * G * d_v, bias=bias, **made)
        self.gate_proj = _GateProjection(hidden, H * 3, bias=True, **made)
        self.out_proj = _Projection(H * d_v, hidden, bias=bias, **made)
        self.sink_slc = nn.Parameter(torch.zeros(H, **made)) if sinks else None
        self.sink_win = nn.Parameter(torch.zeros(H, **made)) if sinks else None
        self.compress_k = Compressor(config, d_qk, config.compress_hidden_k, position=position, **made)
        self.compress_v = Compressor(config, d_v, config.compress_hidden_v, position=position, **made)

    def _number_itself(self) -> None:
        #: The layer's number among those made with the group, by which ranks tell layers with one plan apart. A
        #: compiled graph takes it as a tensor, so that layers share graphs.
        self.number = number_layer(self.group)
        with real_tensors():
            self._number = torch.tensor([self.number], dtype=torch.int64, device="cpu")

    def reset_parameters(self) -> None:
        """Resets the parameters of this module alone; each submodule resets its own."""
        for sink in (self.sink_slc, self.sink_win):
            if sink is not None:
                nn.init.zeros_(sink)

    def plan(self, cu_seqlens, dtype: Optional[torch.dtype] = None, device=None) -> Plan:
        """The plan for these documents, cached from call to call; collective where it is new.

        All layers of a model may be given one plan, if their configurations are the same.
        """
        weight = self.q_proj.weight
        with self._refusing(None, device or weight):
            bounds = tensors.bounds_of(cu_seqlens)
        return self._plans.get(self.config, bounds, group=self.group, dtype=dtype or weight.dtype,
                               device=device or weight.device, partition=self.partition, exchange=self.exchange,
                               **self._options())

    def _options(self) -> dict:
        """The options of a plan that this layer needs beside the defaults."""
        options = {}
        if self.summaries == "unrotated":
            options["compressed_query"] = True
        if self.sink_slc is not None:
            options["sinks"] = True
        return options

    def forward(self, x: torch.Tensor, cu_seqlens=None, plan: Optional[Plan] = None, *,
                selected: Optional[torch.Tensor] = None, cache=None, position_ids: Optional[torch.Tensor] = None,
                attention_mask: Optional[torch.Tensor] = None) -> torch.Tensor:
        """x [rows, hidden] with the documents' bounds in the whole packed sequence, or with a plan; or, on one rank,
        [batch, length, hidden] alone, with a document per sequence. `selected`, if given, is written: the blocks of
        each row's document that it selects, ascending, -1 after them, int32 [rows, num_kv_heads, select_count].

        In place of cu_seqlens, `position_ids`, of the whole packed sequence, that begin again with each document, or
        `attention_mask` [batch, length] of padding at the ends of sequences; see documents.py.

        `cache`, a KvCache of one layer or the part of a step that is this layer's, makes it prefill or decoding: x
        [sequences, length, hidden] or [rows, hidden] are the tokens that the step appends, and nothing has a
        gradient."""
        if cache is not None:
            if any(one is not None for one in (cu_seqlens, plan, position_ids, attention_mask)):
                raise ArgumentError("cache: found it with cu_seqlens or a plan, expected it alone")
            return self._decode(x, cache, selected)
        with self._refusing(plan, x):
            if plan is not None and not isinstance(plan, Plan):
                raise ArgumentError(f"plan: found {type(plan).__name__}, expected a cpnsa.torch.Plan")
            shape = x.shape
            cu_seqlens = self._bounds(cu_seqlens, plan, position_ids, attention_mask)
            if x.dim() not in (2, 3) or shape[-1] != self.hidden:
                raise ArgumentError(f"x: found {list(shape)}, expected [rows, {self.hidden}] or [batch, length, "
                                    f"{self.hidden}]")
            if x.dim() == 3:
                if cu_seqlens is None and plan is None:
                    if self.group is not None:
                        raise ArgumentError("x: found [batch, length, hidden] with a group, expected [rows, hidden] "
                                            "with cu_seqlens or a plan")
                    cu_seqlens = [i * shape[1] for i in range(shape[0] + 1)]
                x = x.reshape(-1, shape[-1])
            if plan is None and cu_seqlens is None:
                raise ArgumentError("cu_seqlens: found neither it nor a plan, expected one of them")
            q = self.q_proj(x)  # under autocast of another type than x
        if plan is None:
            plan = self.plan(cu_seqlens, q.dtype, x.device)
        with self._refusing(plan):
            if not compiling() and x.shape[0] != plan.row_count:
                raise ArgumentError(_wrong_rows(x.shape[0], plan))
            positions = None if self.rotary is None else like(plan.positions, x)
            steps = {"q_cmp": None, "sinks": (_local(self.sink_slc), _local(self.sink_win))}
            q, k, v, gate = self._heads(x, q, positions, plan, steps)
            if self.attention == "full":
                one = lambda tensors: tensors[1] if isinstance(tensors, (tuple, list)) else tensors
                return self.out_proj(full_attention(plan, q, one(k), one(v)).flatten(1)).view(shape)

        number = self._number if compiling() else self.number

        def with_k(compress_k, q, k, v, gate):
            return self.compress_v(lambda compress_v, q, k, v, gate:
                                   attention(plan, q, k, v, gate, compress_k, compress_v, layer=number,
                                             selected=selected, operator=self.operator, **steps),
                                   q, k, v, gate)

        out = self.compress_k(with_k, q, k, v, gate)
        return self.out_proj(out.flatten(1)).view(shape)

    @uncompiled
    @torch.no_grad()
    def _decode(self, x, cache, selected):
        if isinstance(cache, KvCache):
            if cache.layers != 1 or x.dim() != 3:
                raise ArgumentError(f"cache: found {cache.layers} layers and x {list(x.shape)}, expected one layer and "
                                    "x [sequences, length, hidden]; otherwise give a part of KvCache.step()")
            with cache.step(x.shape[1]) as step:
                return self._decode(x, step[0], selected)
        if not isinstance(cache, StepOfLayer):
            raise ArgumentError(f"cache: found {type(cache).__name__}, expected a KvCache or a part of its step")
        if self.summaries != "rotated" or self.sink_slc is not None or self.attention == "full":
            raise ArgumentError("cache: found one with a layer that has sinks, full attention or summaries other than "
                                "rotated, expected none: the decoder has none of them")
        step, shape = cache.step, x.shape
        rows = x.reshape(-1, shape[-1])
        if shape[-1] != self.hidden or rows.shape[0] != step.rows:
            raise ArgumentError(f"x: found {list(shape)}, expected {step.rows} rows of {self.hidden}")
        q, k, v, gate = self._heads(rows, self.q_proj(rows), step.positions)

        def with_k(compress_k):
            return self.compress_v(lambda compress_v: cache.attention(q, k, v, gate, compress_k, compress_v,
                                                                      selected=selected))

        out = self.compress_k(with_k)
        return self.out_proj(out.to(x.dtype).flatten(1)).view(shape)

    def _heads(self, x, q, positions, plan=None, steps=None):
        """q, keys and values (of each branch, or of all) and gate of the rows x at these positions; q is projected.
        Adds to `steps` what the compressed branch is to know of positions."""
        q = q.view(-1, self.num_q_heads, self.head_dim_qk)
        # Heads come first, so that parts of the projections' rows are parts of the heads.
        k = self.k_proj(x).view(-1, self.num_kv_heads, self.branches, self.head_dim_qk).unbind(2)
        v = self.v_proj(x).view(-1, self.num_kv_heads, self.branches, self.head_dim_v).unbind(2)
        if self.rotary is not None:
            q, k = self._rotated(q, k, positions, plan, steps)
        gate = self.gate_proj(x).view(-1, self.num_q_heads, 3)
        return q, k if len(k) == 3 else k[0], v if len(v) == 3 else v[0], gate

    def _rotated(self, q, k, positions, plan, steps):
        plain_q, plain_k = q, k[0]
        q = self.rotary(q, positions)
        if self.summaries == "rotated":
            return q, [self.rotary(one, positions) for one in k]
        if self.summaries == "unrotated":
            steps["q_cmp"] = plain_q
        else:
            steps["summary_rotation"] = self._summary_tables(plan, q)
        rotated = [self.rotary(one, positions) for one in (k[1:] if len(k) == 3 else k)]
        return q, [plain_k, *(rotated if len(k) == 3 else rotated * 2)]

    def _summary_tables(self, plan, q):
        length, stride = self.config.compress_block, self.config.compress_stride
        bounds = plan.partition.cu_seqlens
        longest = max(end - begin for begin, end in zip(bounds, bounds[1:]))
        count = max((longest - length) // stride + 1, 0)
        first = torch.arange(count, device=q.device) * stride
        wide = torch.float64 if q.dtype is torch.float64 else torch.float32
        return tuple(table.to(wide).contiguous() for table in self.summaries(first, first + length - 1))

    @staticmethod
    def _bounds(cu_seqlens, plan, position_ids, attention_mask):
        if position_ids is None and attention_mask is None:
            return cu_seqlens
        if sum(one is not None for one in (cu_seqlens, plan, position_ids, attention_mask)) > 1:
            raise ArgumentError("position_ids, attention_mask: found one beside another or cu_seqlens or a plan, "
                                "expected one of them")
        return bounds_of_mask(attention_mask) if position_ids is None else bounds_of_positions(position_ids)

    def _refusing(self, plan, device=None):
        """A context for this rank's work before a collective call: an exception in it is told to the other ranks."""
        if self.group is None or compiling():
            return contextlib.nullcontext()
        if isinstance(plan, Plan):
            return plan.steps.refusing()
        devices = [getattr(device, "device", device), self.q_proj.weight.device]
        devices = [one for one in devices if isinstance(one, (str, torch.device))]
        return Refusing(a_communicator_of(self.group, *devices))

    def __getstate__(self):
        """A copy, or a pickle, makes plans of its own."""
        return {**self.__dict__, "_plans": PlanCache(self._plans.limit)}

    def __deepcopy__(self, memo):
        memo[id(self.group)] = self.group  # a copy is of the same group
        made = self.__class__.__new__(self.__class__)
        memo[id(self)] = made
        made.__dict__.update(copy.deepcopy(self.__getstate__(), memo))
        made._number_itself()  # a copy is another layer: ranks must not take one for the other
        return made

    def __reduce_ex__(self, protocol):
        if self.group is not None:
            raise ArgumentError("pickle: found a layer with a group, which no pickle holds; save its state_dict()")
        return super().__reduce_ex__(protocol)

    def extra_repr(self):
        return f"hidden={self.hidden}, {self.config!r}"


def _wrong_rows(found, plan):
    tokens, ranks = plan.partition.tokens, plan.partition.ranks
    if ranks == 1:
        return f"x: found {found} rows, expected {tokens}: the last bound of cu_seqlens"
    forgot = "; did you forget plan.shard(x)?" if found == tokens else ""
    return (f"x: found {found} rows, expected {plan.row_count}: this rank's part of the {tokens} tokens of cu_seqlens"
            + forgot)
