"""The layer with its projections, gates and compressors."""

import contextlib
import copy
import math

import torch
from torch import nn

from ..errors import ArgumentError
from .function import attention
from .plan import Plan


class Compressor(nn.Module):
    """The parameters that turn blocks of keys, or of values, into their summaries; shapes in docs/algorithm.md.

    As initialised, `mean` and `linear` compressors take the mean of a block; `mlp` has the usual variance-keeping
    normal weights.
    """

    def __init__(self, config, dim, hidden=0, *, position=True, device=None, dtype=None):
        super().__init__()
        groups, length = config.num_kv_heads, config.compress_block
        self.kind, self.dim, self.length = config.compressor, dim, length
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

    def reset_parameters(self):
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name == "pos":
                    parameter.normal_(0.0, 0.02)
                elif name == "weight":
                    mean = torch.eye(self.dim, dtype=torch.float32).repeat(self.length, 1) / self.length
                    parameter.copy_(_like(parameter, mean.expand_as(parameter)))
                elif name in ("w1", "w2"):
                    parameter.normal_(0.0, 1.0 / math.sqrt(parameter.shape[1]))
                else:
                    parameter.zero_()

    def tensors(self):
        # By name: wrappers (FSDP, parametrisations) put tensors where parameters were.
        return {name: getattr(self, name) for name in self.names}


def _like(parameter, whole):
    """`whole`, laid out as a parameter that FSDP2 has sharded is."""
    if not hasattr(parameter, "device_mesh"):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole.to(parameter.device, parameter.dtype), parameter.device_mesh, parameter.placements)


class NativeSparseAttention(nn.Module):
    """Native sparse attention over this rank's rows of a packed sequence: x [rows, hidden] -> [rows, hidden].

    `config` is a cpnsa.Config. With `branch_kv`, as in the paper, each branch has keys and values of its own.
    `group` is the context-parallel process group, or None. `rotary(x, positions)`, if given, turns queries and keys
    [rows, heads, dk] by their positions in their documents [rows].

    Parameters are the same on all ranks of the group (from one seed, say, or by broadcast), and every rank's gradients
    are those of its own rows: they want summing over the group, as in any data parallelism, the compressors' alike.
    """

    def __init__(self, hidden, config, *, group=None, partition="zigzag", exchange="auto", branch_kv=True, bias=False,
                 position=True, rotary=None, device=None, dtype=None):
        super().__init__()
        if config.gate != "logits":
            raise ArgumentError(f"gate: found '{config.gate}', expected 'logits', which this layer computes")
        made = {"device": device, "dtype": dtype}
        self.hidden, self.config, self.rotary = hidden, config, rotary
        self.group, self.partition, self.exchange = group, partition, exchange
        self.branches = 3 if branch_kv else 1
        self.kept_plans = 16
        self._plans = {}
        H, G, dk, dv = config.num_q_heads, config.num_kv_heads, config.head_dim_qk, config.head_dim_v
        self.num_q_heads, self.num_kv_heads, self.head_dim_qk, self.head_dim_v = H, G, dk, dv
        self.q_proj = nn.Linear(hidden, H * dk, bias=bias, **made)
        self.k_proj = nn.Linear(hidden, self.branches * G * dk, bias=bias, **made)
        self.v_proj = nn.Linear(hidden, self.branches * G * dv, bias=bias, **made)
        self.gate_proj = nn.Linear(hidden, H * 3, bias=True, **made)
        self.out_proj = nn.Linear(H * dv, hidden, bias=bias, **made)
        self.compress_k = Compressor(config, dk, config.compress_hidden_k, position=position, **made)
        self.compress_v = Compressor(config, dv, config.compress_hidden_v, position=position, **made)
        self.reset_parameters()

    def reset_parameters(self):
        for projection in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            nn.init.xavier_uniform_(projection.weight)
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)
        nn.init.normal_(self.gate_proj.weight, 0.0, 0.02)
        nn.init.zeros_(self.gate_proj.bias)  # gates begin half open
        self.compress_k.reset_parameters()
        self.compress_v.reset_parameters()

    def plan(self, cu_seqlens, dtype=None, device=None):
        """The plan for these documents, kept from call to call; collective where it is new.

        All layers of a model may be given one plan, if their configurations are the same.
        """
        weight = self.q_proj.weight
        bounds = tuple(cu_seqlens.tolist() if hasattr(cu_seqlens, "tolist") else cu_seqlens)
        dtype = dtype or weight.dtype
        key = (bounds, dtype, device or weight.device)
        if key not in self._plans:
            if len(self._plans) >= self.kept_plans:
                self._plans.pop(next(iter(self._plans)))
            self._plans[key] = Plan(self.config, bounds, group=self.group, dtype=dtype, device=key[2],
                                    partition=self.partition, exchange=self.exchange)
        return self._plans[key]

    def forward(self, x, cu_seqlens=None, plan=None):
        """x [rows, hidden] with the documents' bounds in the whole packed sequence, or with a plan; or, on one rank,
        [batch, length, hidden] alone, a document a sequence."""
        shape = x.shape
        if x.dim() == 3:
            if cu_seqlens is None and plan is None:
                if self.group is not None:
                    raise ArgumentError("x: found [batch, length, hidden] with a group, expected [rows, hidden] with "
                                        "cu_seqlens or a plan")
                cu_seqlens = [i * shape[1] for i in range(shape[0] + 1)]
            x = x.reshape(-1, shape[-1])
        if x.dim() != 2 or x.shape[1] != self.hidden:
            with contextlib.nullcontext() if plan is None else plan.refusing():
                raise ArgumentError(f"x: found {list(shape)}, expected [rows, {self.hidden}] or [batch, length, "
                                    f"{self.hidden}]")
        q = self.q_proj(x)  # under autocast of another type than x
        if plan is None:
            if cu_seqlens is None:
                raise ArgumentError("cu_seqlens: found neither it nor a plan, expected one of them")
            plan = self.plan(cu_seqlens, q.dtype, x.device)
        q = q.view(-1, self.num_q_heads, self.head_dim_qk)
        k = self.k_proj(x).view(-1, self.branches, self.num_kv_heads, self.head_dim_qk).unbind(1)
        v = self.v_proj(x).view(-1, self.branches, self.num_kv_heads, self.head_dim_v).unbind(1)
        if self.rotary is not None:
            q = self.rotary(q, plan.positions)
            k = [self.rotary(one, plan.positions) for one in k]
        gate = self.gate_proj(x).view(-1, self.num_q_heads, 3)
        out = attention(plan, q, k if self.branches == 3 else k[0], v if self.branches == 3 else v[0], gate,
                        self.compress_k.tensors(), self.compress_v.tensors())
        return self.out_proj(out.flatten(1)).view(shape)

    def __getstate__(self):
        """A copy, or a pickle, makes plans of its own."""
        return {**self.__dict__, "_plans": {}}

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
