"""The layer with its projections, gates and compressors."""

import contextlib
import copy
import math
from typing import Callable, Optional, Tuple

import torch
from torch import nn

from .. import _core, tensors
from ..errors import ArgumentError, Refusing
from .function import attention
from .groups import a_communicator_of, number_layer
from .plan import Plan
from .plan_cache import PlanCache
from .tracing import compiling, like, real_tensors

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
        return {name: getattr(self, name) for name in self.names}

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
    their documents [rows]. `bias` gives the projections of q, k, v and the output a bias, `position` the compressors a
    position encoding.

    Parameters are the same on all ranks of the group (from one seed, say, or by broadcast). Each rank's gradients are
    those of its own rows: they are summed over the group as in data parallelism, those of the compressors too.
    """

    def __init__(self, hidden: int, config: _core.Config, *, group=None, partition="zigzag", exchange: str = "auto",
                 branch_kv: bool = True, bias: bool = False, position: bool = True,
                 rotary: Optional[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = None, device=None,
                 dtype: Optional[torch.dtype] = None):
        super().__init__()
        if config.gate != "logits":
            raise ArgumentError(f"gate: found '{config.gate}', expected 'logits', which this layer computes")
        made = {"device": device, "dtype": dtype}
        self.hidden, self.config, self.rotary = hidden, config, rotary
        self.group, self.partition, self.exchange = group, partition, exchange
        self.branches = 3 if branch_kv else 1
        self._plans = PlanCache()
        #: The layer's number among those made with the group, by which ranks tell layers with one plan apart. A
        #: compiled graph takes it as a tensor, so that layers share graphs.
        self.number = number_layer(group)
        with real_tensors():
            self._number = torch.tensor([self.number], dtype=torch.int64, device="cpu")
        H, G, d_qk, d_v = config.num_q_heads, config.num_kv_heads, config.head_dim_qk, config.head_dim_v
        self.num_q_heads, self.num_kv_heads, self.head_dim_qk, self.head_dim_v = H, G, d_qk, d_v
        self.q_proj = _Projection(hidden, H * d_qk, bias=bias, **made)
        self.k_proj = _Projection(hidden, self.branches * G * d_qk, bias=bias, **made)
        self.v_proj = _Projection(hidden, self.branches * G * d_v, bias=bias, **made)
        self.gate_proj = _GateProjection(hidden, H * 3, bias=True, **made)
        self.out_proj = _Projection(H * d_v, hidden, bias=bias, **made)
        self.compress_k = Compressor(config, d_qk, config.compress_hidden_k, position=position, **made)
        self.compress_v = Compressor(config, d_v, config.compress_hidden_v, position=position, **made)

    def plan(self, cu_seqlens, dtype: Optional[torch.dtype] = None, device=None) -> Plan:
        """The plan for these documents, cached from call to call; collective where it is new.

        All layers of a model may be given one plan, if their configurations are the same.
        """
        weight = self.q_proj.weight
        with self._refusing(None, device or weight):
            bounds = tensors.bounds_of(cu_seqlens)
        return self._plans.get(self.config, bounds, group=self.group, dtype=dtype or weight.dtype,
                               device=device or weight.device, partition=self.partition, exchange=self.exchange)

    def forward(self, x: torch.Tensor, cu_seqlens=None, plan: Optional[Plan] = None, *,
                selected: Optional[torch.Tensor] = None) -> torch.Tensor:
        """x [rows, hidden] with the documents' bounds in the whole packed sequence, or with a plan; or, on one rank,
        [batch, length, hidden] alone, with a document per sequence. `selected`, if given, is written: the blocks of
        each row's document that it selects, ascending, -1 after them, int32 [rows, num_kv_heads, select_count]."""
        with self._refusing(plan, x):
            if plan is not None and not isinstance(plan, Plan):
                raise ArgumentError(f"plan: found {type(plan).__name__}, expected a cpnsa.torch.Plan")
            shape = x.shape
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
            q = q.view(-1, self.num_q_heads, self.head_dim_qk)
            k = self.k_proj(x).view(-1, self.branches, self.num_kv_heads, self.head_dim_qk).unbind(1)
            v = self.v_proj(x).view(-1, self.branches, self.num_kv_heads, self.head_dim_v).unbind(1)
            if self.rotary is not None:
                positions = like(plan.positions, x)
                q = self.rotary(q, positions)
                k = [self.rotary(one, positions) for one in k]
            gate = self.gate_proj(x).view(-1, self.num_q_heads, 3)
            k, v = (k, v) if self.branches == 3 else (k[0], v[0])

        number = self._number if compiling() else self.number

        def with_k(compress_k, q, k, v, gate):
            return self.compress_v(lambda compress_v, q, k, v, gate:
                                   attention(plan, q, k, v, gate, compress_k, compress_v, layer=number,
                                             selected=selected),
                                   q, k, v, gate)

        out = self.compress_k(with_k, q, k, v, gate)
        return self.out_proj(out.flatten(1)).view(shape)

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
