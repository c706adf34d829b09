"""Native sparse attention for Megatron-core: `native_sparse(spec, ...)` gives a specification whose self-attention it
is. docs/megatron.md has a complete program."""

import copy
import dataclasses
import functools
import inspect
from typing import Optional

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.attention import Attention, SelfAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec, build_module

from .. import _core
from ..errors import ArgumentError, Refusing
from . import megatron_documents as documents
from . import megatron_inference as inference
from . import megatron_settings as settings
from .function import attention
from .groups import communicator_of, number_layer
from .module import Compressor
from .plan_cache import PlanCache
from .redistribute import Redistribution, megatron_rows

__all__ = ["NativeSparseCoreAttention", "NativeSparseSelfAttention", "native_sparse", "release"]

_plans = PlanCache()  # shared by all layers, whose calls all ranks make in one order


def native_sparse(spec, *, branch_kv: bool = False, **options):
    """A specification like `spec`, in which each SelfAttention is native and sparse.

    `spec` is that of a layer, a list of them, or that of a block, a hybrid stack or multi-token prediction, which hold
    layers. Layers without attention stay as they are; other attention (multi-latent, cross, a subclass) is refused.
    Without `branch_kv`, the default, the three branches share the keys and values of linear_qkv, whose checkpoints stay
    Megatron's own; with it each branch has keys and values of its own, as in the paper and as in cpnsa.torch by
    default. `options` are NativeSparseCoreAttention's.
    """
    found = []
    spec = _replaced(spec, branch_kv, options, "spec", found)
    if not found:
        raise ArgumentError("spec: found no SelfAttention in it, expected at least one")
    return spec


def _replaced(spec, branch_kv, options, path, found):
    """A copy of the specification as far down as attention; adds to `found` the path of each."""
    if isinstance(spec, (list, tuple)):
        return type(spec)(_replaced(one, branch_kv, options, f"{path}[{index}]", found)
                          for index, one in enumerate(spec))
    if isinstance(spec, ModuleSpec):
        made, module = copy.copy(spec), spec.module
        if not (inspect.isclass(module) and issubclass(module, Attention)):
            made.submodules = _replaced(spec.submodules, branch_kv, options, path, found)
            return made
        if module not in (SelfAttention, NativeSparseSelfAttention):
            raise ArgumentError(f"{path}: found {module.__name__}, expected SelfAttention")
        found.append(path)
        made.module = NativeSparseSelfAttention
        made.params = {**(spec.params or {}), "branch_kv": branch_kv}
        made.submodules = dataclasses.replace(
            spec.submodules, core_attention=functools.partial(NativeSparseCoreAttention, **options))
        return made
    if dataclasses.is_dataclass(spec) and not isinstance(spec, type):
        made = copy.copy(spec)
        for field in dataclasses.fields(spec):
            setattr(made, field.name, _replaced(getattr(spec, field.name), branch_kv, options, f"{path}.{field.name}",
                                                found))
        return made
    return spec


class NativeSparseSelfAttention(SelfAttention):
    """Megatron's self-attention and a projection of the hidden states to the three gates of each head.

    The gates, and with `branch_kv` the further keys and values, are projected from what linear_qkv projects from. Where
    linear_qkv has a norm inside (Transformer Engine), the other projections are of its class and share its norm."""

    def __init__(self, config, submodules, layer_number, *args, branch_kv: bool = False, **kwargs):
        settings.check(config)
        core = functools.partial(submodules.core_attention, num_query_groups=config.num_query_groups,
                                 branch_kv=branch_kv)
        super().__init__(config, dataclasses.replace(submodules, core_attention=core), layer_number, *args, **kwargs)
        self.branch_kv = branch_kv
        build = functools.partial(self._projection, submodules.linear_qkv)
        self.gate_projection = build(3 * config.num_attention_heads, bias=True)
        torch.nn.init.zeros_(self.gate_projection.bias)  # gates begin half open
        self.linear_branch_kv = None
        if branch_kv:
            if config.num_query_groups < self.pg_collection.tp.size():
                raise ArgumentError(f"branch_kv: found True and {config.num_query_groups} KV heads on "
                                    f"{self.pg_collection.tp.size()} tensor-parallel ranks, expected as many at least")
            if config.fused_single_qkv_rope:
                raise ArgumentError("fused_single_qkv_rope: found True, expected False with branch_kv")
            self.linear_branch_kv = build(2 * 2 * config.num_query_groups * config.kv_channels,
                                          bias=config.add_bias_linear or config.add_qkv_bias)

    def _projection(self, builder, outputs, bias):
        config = self.config
        if config.tp_comm_overlap:  # its buffers are made for linear_qkv's size
            config = copy.copy(config)
            config.tp_comm_overlap = False
        make = functools.partial(build_module, builder) if isinstance(builder, ModuleSpec) else builder
        projection = make(
            config.hidden_size, outputs, config=config, init_method=config.init_method, gather_output=False, bias=bias,
            skip_bias_add=False, is_expert=False, tp_comm_buffer_name="qkv", tp_group=self.pg_collection.tp)
        _share_norm(projection, self.linear_qkv)
        return projection

    def forward(self, hidden_states, *args, **kwargs):
        given = _forward.bind(self, hidden_states, *args, **kwargs).arguments
        for name, expected in _refused_in_forward.items():
            if given.get(name) is not None:
                raise ArgumentError(f"{name}: found one, expected none: {expected}")
        context = inference.context_of(given, self.training)
        if context is not None:
            # The core attention holds the cache, so that Megatron's own need not.
            split = self.pg_collection.tp.size() if self.config.sequence_parallel else 1
            args = (given["attention_mask"],)
            kwargs = {"rotary_pos_emb": inference.rotary_of_step(given.get("rotary_pos_emb"), context,
                                                                 hidden_states.shape[0] * split),
                      "packed_seq_params": given.get("packed_seq_params")}
        self.core_attention.context = context
        try:
            return super().forward(hidden_states, *args, **kwargs)
        finally:
            self.core_attention.gate = self.core_attention.context = None

    def get_query_key_value_tensors(self, hidden_states, *args, **kwargs):
        found = super().get_query_key_value_tensors(hidden_states, *args, **kwargs)
        self.core_attention.gate, _ = self.gate_projection(hidden_states)  # [s, b, heads 3]
        if self.linear_branch_kv is None:
            return found
        query, key, value, *others = found
        further, _ = self.linear_branch_kv(hidden_states)
        further = further.view(*further.shape[:2], key.shape[2], 2, 2, key.shape[3])
        keys, values = further.transpose(2, 3).flatten(2, 3).unbind(3)  # [s, b, 2 G, d]: branch after branch
        if self.k_layernorm is not None:
            keys = self.k_layernorm(keys)
        # Rotary embeddings treat heads alike; the core attention takes the branches apart.
        return (query, torch.cat([key, keys], 2), torch.cat([value, values.contiguous()], 2), *others)

    def _backward_qkv_proj(self):
        super()._backward_qkv_proj()
        for projection in (self.gate_projection, self.linear_branch_kv):
            if projection is not None:
                projection.backward_dw()

    def set_for_recompute_input_layernorm(self):
        super().set_for_recompute_input_layernorm()
        from megatron.core.extensions.transformer_engine import set_save_original_input

        for projection in (self.gate_projection, self.linear_branch_kv):
            if projection is not None:
                set_save_original_input(projection)


_forward = inspect.signature(SelfAttention.forward)
_inference = "decoding works with a StaticInferenceContext and rotary_pos_emb"
#: Arguments of SelfAttention.forward beside those of the core attention.
_refused_in_forward = {
    "sequence_len_offset": _inference,
    "rotary_pos_cos": _inference, "rotary_pos_sin": _inference, "rotary_pos_cos_sin": _inference,
    "key_value_states": "this is self-attention", "attention_bias": "scores take no bias",
}


def _share_norm(projection, linear_qkv):
    """Gives a projection the norm inside linear_qkv: all parameters and submodules of linear_qkv except `weight` and
    `bias`. Checkpoints hold them once, as linear_qkv's."""
    shared = []
    for name, module in linear_qkv.named_children():
        setattr(projection, name, module)
        shared += [f"{name}.{key}" for key in module.state_dict(keep_vars=True)]
    for name, parameter in list(linear_qkv.named_parameters(recurse=False)):
        if name not in ("weight", "bias"):
            setattr(projection, name, parameter)
            shared.append(name)

    def forget(module, state, prefix, *_):
        for name in shared:
            state.pop(prefix + name, None)

    def recall(state, prefix, *_):
        own = dict(projection.named_parameters(remove_duplicate=False))
        own.update(projection.named_buffers(remove_duplicate=False))
        for name in shared:
            if name in own and prefix + name not in state:
                state[prefix + name] = own[name].detach()

    if shared:
        projection._register_state_dict_hook(forget)
        projection._register_load_state_dict_pre_hook(recall)


class NativeSparseCoreAttention(MegatronModule):
    """In the place of (TE)DotProductAttention, over the context-parallel group `pg_collection.cp`.

    Sequences lie over the ranks as Megatron lays them: each in 2P chunks, of which rank r has chunks r and 2P - 1 - r.
    `options` are cpnsa.Config's: compress_block, select_block, select_count, window, compressor ...; `compress_hidden`
    is the hidden width of the mlp compressor, 2 kv_channels unless given; `exchange` says how blocks are moved.

    With fewer KV heads than tensor-parallel ranks, several ranks hold one KV head: each computes attention of all of
    its query heads, because they choose blocks together, and hands on its own. The compressors' gradients are summed
    over those ranks here.
    """

    def __init__(self, config, layer_number: int, attn_mask_type, attention_type: str,
                 attention_dropout: Optional[float] = None, softmax_scale: Optional[float] = None,
                 cp_comm_type: Optional[str] = None, pg_collection=None, k_channels: Optional[int] = None,
                 v_channels: Optional[int] = None, num_splits: Optional[int] = None, *, exchange: str = "auto",
                 compress_hidden: Optional[int] = None, num_query_groups: Optional[int] = None, branch_kv: bool = False,
                 **options):
        super().__init__(config=config)
        for name, found in (("k_channels", k_channels), ("v_channels", v_channels), ("num_splits", num_splits)):
            if found is not None:
                raise ArgumentError(f"{name}: found {found}, expected none")
        dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        if dropout:
            raise ArgumentError(f"attention_dropout: found {dropout}, expected 0")
        if attention_type != "self":
            raise ArgumentError(f"attention_type: found '{attention_type}', expected 'self'")
        if cp_comm_type not in (None, "p2p"):
            raise ArgumentError(f"cp_comm_type: found '{cp_comm_type}', expected 'p2p': native_sparse(exchange=...) "
                                "says how blocks are moved")
        if pg_collection is None:
            raise ArgumentError("pg_collection: found none, expected one with tp and cp")
        self.tp_group, self.cp_group = pg_collection.tp, pg_collection.cp
        self.exchange = exchange
        self.layer_number = layer_number
        #: Its number among the layers of the group. Megatron's own begins again at 1 in multi-token prediction and in
        #: other models, with which this layer shares plans.
        self.number = number_layer(self.cp_group)
        self.branches = 3 if branch_kv else 1
        tp_rank, tp_size = self.tp_group.rank(), self.tp_group.size()
        kv_heads = config.num_query_groups if num_query_groups is None else num_query_groups
        q_heads = config.num_attention_heads
        self.replicas = max(tp_size // kv_heads, 1)
        self.kv_parts = tp_size // self.replicas  # the parts that KV heads are cut into over tensor-parallel ranks
        self.kv_part = tp_rank // self.replicas
        if kv_heads % self.kv_parts or self.kv_parts * self.replicas != tp_size or q_heads % tp_size:
            raise ArgumentError(f"num_query_groups: found {kv_heads} KV heads and {q_heads} query heads on {tp_size} "
                                "tensor-parallel ranks, expected multiples or divisors of them")
        if self.replicas > 1 and (parallel_state.get_tensor_model_parallel_world_size() != tp_size or
                                  parallel_state.get_tensor_model_parallel_rank() != tp_rank):
            raise ArgumentError(f"num_query_groups: found {kv_heads} KV heads on {tp_size} tensor-parallel ranks of a "
                                "pg_collection that is not Megatron's global one, which its projections ask here; "
                                f"expected at least {tp_size}")
        self.own_heads = q_heads // tp_size
        self.first_own_head = (tp_rank % self.replicas) * self.own_heads
        dim = config.kv_channels
        hidden = 2 * dim if compress_hidden is None else compress_hidden
        self.nsa = _core.Config(
            num_q_heads=self.own_heads * self.replicas, num_kv_heads=kv_heads // self.kv_parts, head_dim_qk=dim,
            head_dim_v=dim, softmax_scale=softmax_scale, compress_hidden_k=hidden, compress_hidden_v=hidden, **options)
        if getattr(config, "init_model_with_meta_device", False):
            device = "meta"
        else:
            device = "cpu" if config.use_cpu_initialization else torch.cuda.current_device()
        self.compress_k, self.compress_v = (
            Compressor(self.nsa, dim, hidden, part=(self.kv_part, self.kv_parts), device=device,
                       dtype=config.params_dtype) for _ in range(2))
        for parameter in self.parameters():
            # A replica does not count in norms over tensor-parallel ranks.
            set_tensor_model_parallel_attributes(parameter, tp_rank % self.replicas == 0, 0, 1)
        self.gate = None
        self.context = None  # that of inference

    def forward(self, query, key, value, attention_mask, attn_mask_type=None, attention_bias=None,
                packed_seq_params=None, num_splits=None):
        """query [s, b, heads, d], or [t, heads, d] of packed sequences; out [s, b, heads d], or [t, heads d]."""
        if self.context is not None:
            return self._decode(query, key, value, packed_seq_params)
        group = self._group(packed_seq_params)
        rank, ranks = (group.rank(), group.size()) if group is not None else (0, 1)
        packed = packed_seq_params is not None and packed_seq_params.qkv_format == "thd"
        with Refusing(communicator_of(group, query.device)):
            for name, found in (("attention_bias", attention_bias), ("num_splits", num_splits)):
                if found is not None:
                    raise ArgumentError(f"{name}: found one, expected none")
            if attn_mask_type not in (None, AttnMaskType.causal, AttnMaskType.padding_causal):
                raise ArgumentError(f"attn_mask_type: found {attn_mask_type}, expected causal")
            if self.gate is None:
                raise ArgumentError("gate: found none, expected that of NativeSparseSelfAttention; use "
                                    "native_sparse(spec)")
            if packed_seq_params is not None:
                settings.check_packed(packed_seq_params)
            if packed:
                if attention_mask is not None and attention_mask.numel() > 1:
                    raise ArgumentError("attention_mask: found one beside packed_seq_params, expected none")
                bounds = documents.of_packed(packed_seq_params)
                rows = lambda tensor: tensor
                gate = self.gate.reshape(query.shape[0], self.own_heads, 3)
            else:
                if packed_seq_params is not None and packed_seq_params.cu_seqlens_q is not None:
                    raise ArgumentError(f"cu_seqlens_q: found one with qkv_format {packed_seq_params.qkv_format!r}, "
                                        "expected 'thd'")
                length, batch = query.shape[0] * ranks, query.shape[1]
                bounds = documents.of_mask(attention_mask, length, batch, rank, ranks)
                rows = lambda tensor: tensor.transpose(0, 1).flatten(0, 1)  # one sequence after another
                gate = rows(self.gate.view(query.shape[0], batch, self.own_heads, 3))
            moved = self._must_move(bounds, ranks)
            keys = [rows(one) for one in key.chunk(self.branches, -2)]
            values = [rows(one) for one in value.chunk(self.branches, -2)]
        plan = _plans.get(self.nsa, bounds, group=group, dtype=query.dtype, device=query.device,
                          partition="zigzag_per_document", exchange=self.exchange)
        with plan.steps.refusing():
            q, gate = self._all_heads(rows(query)), self._padded(gate.to(query.dtype))
        if moved:
            way = _way(plan, bounds, group, query.device)
            q, gate = way.forth(q), way.forth(gate)
            keys, values = ([way.forth(one.contiguous()) for one in tensors] for tensors in (keys, values))
        out = self._attention(plan, q, keys if self.branches == 3 else keys[0],
                              values if self.branches == 3 else values[0], gate)
        out = out.narrow(1, self.first_own_head, self.own_heads)
        if moved:
            out = way.back(out.contiguous())
        if packed:
            return out.flatten(1)
        return out.reshape(batch, query.shape[0], -1).transpose(0, 1).contiguous()

    def _decode(self, query, key, value, packed_seq_params):
        """forward() of the tokens that a step of inference appends: query [s, b, heads, d]."""
        if packed_seq_params is not None:
            raise ArgumentError("packed_seq_params: found them with an inference_context, expected none")
        if self.cp_group.size() > 1:
            raise ArgumentError(f"context_parallel_size: found {self.cp_group.size()} with an inference_context, "
                                "expected 1")
        if self.gate is None:
            raise ArgumentError("gate: found none, expected that of NativeSparseSelfAttention; use native_sparse(spec)")
        length, self.batch = query.shape[:2]
        rows = lambda tensor: tensor.transpose(0, 1).flatten(0, 1)  # one sequence after another
        gate = rows(self.gate.view(length, self.batch, self.own_heads, 3)).to(query.dtype)
        out = inference.attend(self, self.context, self._all_heads(rows(query)),
                               [rows(one) for one in key.chunk(self.branches, -2)],
                               [rows(one) for one in value.chunk(self.branches, -2)], self._padded(gate))
        out = out.narrow(1, self.first_own_head, self.own_heads)
        return out.reshape(self.batch, length, -1).transpose(0, 1).contiguous()

    def _attention(self, plan, query, key, value, gate):
        def with_k(compress_k, query, key, value, gate):
            return self.compress_v(lambda compress_v, query, key, value, gate:
                                   attention(plan, query, key, value, gate, self._replicated(compress_k),
                                             self._replicated(compress_v), layer=self.number),
                                   query, key, value, gate)

        return self.compress_k(with_k, query, key, value, gate)

    def _group(self, packed):
        """The context-parallel group of this call; None for this process alone."""
        group = self.cp_group
        if packed is not None and getattr(packed, "cp_group", None) is not None:
            group = packed.cp_group
        elif packed is not None and getattr(packed, "local_cp_size", None) is not None:
            if packed.local_cp_size != 1:
                raise ArgumentError(f"local_cp_size: found {packed.local_cp_size} without a cp_group, expected 1")
            return None
        return group if group.size() > 1 else None

    def _must_move(self, bounds, ranks):
        """Tells whether chunks end where blocks do not, so that rows must go to the ranks of their blocks."""
        lengths = [end - begin for begin, end in zip(bounds, bounds[1:])]
        for length in lengths:
            if ranks > 1 and length % (2 * ranks):
                raise ArgumentError(f"packed sequence: found a document of {length} tokens, padding included, expected "
                                    f"a multiple of {2 * ranks}, which Megatron's layout needs: 2 x {ranks} "
                                    "context-parallel ranks")
        return ranks > 1 and any(length % (2 * ranks * self.nsa.select_block) for length in lengths)

    def _all_heads(self, query):
        """Queries of all heads of this rank's KV heads. Those of other ranks choose blocks, and get no gradient
        here."""
        if self.replicas == 1:
            return query
        own = query.detach().contiguous()
        parts = [torch.empty_like(own) for _ in range(self.tp_group.size())]
        dist.all_gather(parts, own, group=self.tp_group)
        first = self.kv_part * self.replicas
        parts = parts[first:first + self.replicas]
        parts[self.first_own_head // self.own_heads] = query
        return torch.cat(parts, 1)

    def _padded(self, gate):
        after = self.nsa.num_q_heads - self.first_own_head - self.own_heads
        return torch.nn.functional.pad(gate, (0, 0, self.first_own_head, after)) if self.replicas > 1 else gate

    def _replicated(self, parameters):
        if self.replicas == 1:
            return parameters
        return {name: _SumOverReplicas.apply(parameter, self.tp_group, self.kv_part, self.kv_parts)
                for name, parameter in parameters.items()}

    def sharded_state_dict(self, prefix="", sharded_offsets=(), metadata=None):
        metadata = _with_groups(metadata)
        data = metadata.get("dp_cp_group") or parallel_state.get_data_parallel_group(with_context_parallel=True)
        state = self.state_dict(prefix="", keep_vars=True)
        replica = (0, self.tp_group.rank() % self.replicas, data.rank())
        return {prefix + name: ShardedTensor.from_rank_offsets(
                    prefix + name, tensor, *sharded_offsets, (len(sharded_offsets), self.kv_part, self.kv_parts),
                    replica_id=replica, prepend_axis_num=len(sharded_offsets))
                for name, tensor in state.items()}


def _way(plan, bounds, group, device):
    """From Megatron's layout of these documents to the plan's; kept with the plan."""
    if not hasattr(plan, "megatron_way"):
        rank, ranks = group.rank(), group.size()
        target = [torch.from_dlpack(plan.partition.global_rows(peer)) for peer in range(ranks)]
        source = [megatron_rows(bounds, peer, ranks) for peer in range(ranks)]
        plan.megatron_way = Redistribution(source, target, rank, group, device)
    return plan.megatron_way


def _with_groups(metadata):
    try:
        from megatron.core.transformer.utils import ensure_metadata_has_dp_cp_group
    except ImportError:  # before 0.16
        return metadata or {}
    return ensure_metadata_has_dp_cp_group(metadata)


class _SumOverReplicas(torch.autograd.Function):
    """A compressor's parameter of one KV head that several tensor-parallel ranks hold: their gradients are summed."""

    @staticmethod
    def forward(ctx, parameter, group, part, parts):
        ctx.group, ctx.part, ctx.parts = group, part, parts
        return parameter.view_as(parameter)

    @staticmethod
    def backward(ctx, gradient):
        # One sum over the tensor-parallel group, in which each KV head has a place: Megatron has no group of replicas.
        whole = gradient.new_zeros((ctx.parts, *gradient.shape))
        whole[ctx.part] = gradient
        dist.all_reduce(whole, group=ctx.group)
        return whole[ctx.part], None, None, None


def release() -> None:
    """Forgets all plans: before destroy_process_group(), with cpnsa.torch.release()."""
    _plans.clear()
