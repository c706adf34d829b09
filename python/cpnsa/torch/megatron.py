"""Native sparse attention for Megatron-core: `native_sparse(layer_spec, ...)` gives a layer specification whose
self-attention it is. docs/megatron.md has a complete program."""

import collections
import copy
import functools

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, set_tensor_model_parallel_attributes
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint

from .. import _core
from ..errors import ArgumentError
from .function import attention
from .module import Compressor
from .plan import Plan

_plans = collections.OrderedDict()  # shared by all layers, whose calls all ranks make in one order
_kept_plans = 16


def native_sparse(spec, **options):
    """A copy of a transformer layer's ModuleSpec with this attention; `options` are NativeSparseCoreAttention's."""
    spec = copy.deepcopy(spec)
    of_attention = spec.submodules.self_attention
    of_attention.module = NativeSparseSelfAttention
    of_attention.submodules.core_attention = functools.partial(NativeSparseCoreAttention, **options)
    return spec


class NativeSparseSelfAttention(SelfAttention):
    """Megatron's self-attention and a projection of the hidden states to each head's three gates."""

    def __init__(self, config, submodules, layer_number, *args, **kwargs):
        super().__init__(config, submodules, layer_number, *args, **kwargs)
        if self.checkpoint_core_attention:
            raise ArgumentError("recompute_modules: found 'core_attn', whose recomputation would lose the gates' "
                                "gradients; expected the whole layer's, recompute_granularity='full', or none")
        self.gate_projection = ColumnParallelLinear(
            config.hidden_size, 3 * config.num_attention_heads, config=config, init_method=config.init_method,
            gather_output=False, bias=True, skip_bias_add=False, tp_group=self.pg_collection.tp)
        torch.nn.init.zeros_(self.gate_projection.bias)  # gates begin half open

    def forward(self, hidden_states, *args, **kwargs):
        self.core_attention.gate, _ = self.gate_projection(hidden_states)  # [s, b, heads 3]
        try:
            return super().forward(hidden_states, *args, **kwargs)
        finally:
            self.core_attention.gate = None


class NativeSparseCoreAttention(MegatronModule):
    """In the place of (TE)DotProductAttention, over the context-parallel group `pg_collection.cp`.

    Sequences lie over the ranks as Megatron lays them: each in 2P chunks, rank r having chunks r and 2P - 1 - r.
    `options` are cpnsa.Config's: compress_block, select_block, select_count, window, compressor, compress_hidden ...
    """

    def __init__(self, config, layer_number, attn_mask_type, attention_type, attention_dropout=None,
                 softmax_scale=None, cp_comm_type=None, pg_collection=None, *, exchange="auto", compress_hidden=None,
                 **options):
        super().__init__(config=config)
        dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        if dropout:
            raise ArgumentError(f"attention_dropout: found {dropout}, expected 0")
        if attention_type != "self":
            raise ArgumentError(f"attention_type: found '{attention_type}', expected 'self'")
        if pg_collection is None:
            raise ArgumentError("pg_collection: found none, expected one with tp and cp")
        self.cp_group = pg_collection.cp
        self.exchange = exchange
        ranks = pg_collection.tp.size()
        dim = config.kv_channels
        hidden = 2 * dim if compress_hidden is None else compress_hidden
        self.nsa = _core.Config(
            num_q_heads=config.num_attention_heads // ranks, num_kv_heads=max(config.num_query_groups // ranks, 1),
            head_dim_qk=dim, head_dim_v=dim, softmax_scale=softmax_scale, compress_hidden_k=hidden,
            compress_hidden_v=hidden, **options)
        device = None if config.use_cpu_initialization else torch.cuda.current_device()
        self.compress_k, self.compress_v = (
            Compressor(self.nsa, dim, hidden, device=device, dtype=config.params_dtype) for _ in range(2))
        for parameter in self.parameters():  # KV heads are split over the tensor-parallel ranks
            set_tensor_model_parallel_attributes(parameter, True, 0, 1)
        self.gate = None
        self._bounds_of = (None, None)

    def forward(self, query, key, value, attention_mask, attn_mask_type=None, attention_bias=None,
                packed_seq_params=None, **_):
        """query [s, b, heads, d], or [t, heads, d] of packed sequences; out [s, b, heads d], or [t, heads d]."""
        if attention_bias is not None:
            raise ArgumentError("attention_bias: found one, expected none")
        if attn_mask_type not in (None, AttnMaskType.causal, AttnMaskType.padding_causal):
            raise ArgumentError(f"attn_mask_type: found {attn_mask_type}, expected causal")
        if self.gate is None:
            raise ArgumentError("gate: found none, expected that of NativeSparseSelfAttention; use native_sparse(spec)")
        group = getattr(packed_seq_params, "cp_group", None) or self.cp_group
        heads = self.nsa.num_q_heads
        if packed_seq_params is not None and packed_seq_params.qkv_format == "thd":
            plan = self._plan(self._documents(packed_seq_params), group, query)
            out = self._attention(plan, query, key, value, self.gate.reshape(-1, heads, 3))
            return out.flatten(1)
        length, batch = query.shape[0] * group.size(), query.shape[1]
        plan = self._plan(tuple(range(0, (batch + 1) * length, length)), group, query)
        # A sequence after another, as a packed one.
        tensors = [tensor.transpose(0, 1).flatten(0, 1) for tensor in (query, key, value)]
        gate = self.gate.view(query.shape[0], batch, heads, 3).transpose(0, 1).flatten(0, 1)
        out = self._attention(plan, *tensors, gate)
        return out.view(batch, query.shape[0], -1).transpose(0, 1).contiguous()

    def _attention(self, plan, query, key, value, gate):
        return attention(plan, query, key, value, gate.to(query.dtype), self.compress_k.tensors(),
                         self.compress_v.tensors())

    def _documents(self, packed):
        """Bounds of the documents in the whole packed sequence; padding is part of the document before it."""
        bounds = packed.cu_seqlens_q_padded if packed.cu_seqlens_q_padded is not None else packed.cu_seqlens_q
        if self._bounds_of[0] is not bounds:  # reading them waits for the GPU: once a batch
            self._bounds_of = bounds, tuple(bounds.tolist())
        return self._bounds_of[1]

    def _plan(self, bounds, group, query):
        chunks = 2 * group.size() * self.nsa.select_block
        if group.size() > 1:
            for begin, end in zip(bounds, bounds[1:]):
                if (end - begin) % chunks:
                    raise ArgumentError(f"packed sequence: found a document of {end - begin} tokens, padding included, "
                                        f"expected a multiple of {chunks}: 2 x {group.size()} context-parallel ranks "
                                        f"x select_block {self.nsa.select_block}")
        key = (self.nsa, bounds, id(group), query.dtype, query.device, self.exchange)
        if key not in _plans:
            if len(_plans) >= _kept_plans:
                _plans.popitem(last=False)
            _plans[key] = Plan(self.nsa, bounds, group=group if group.size() > 1 else None, dtype=query.dtype,
                               device=query.device, partition="zigzag_per_document", exchange=self.exchange)
        return _plans[key]

    def sharded_state_dict(self, prefix="", sharded_offsets=(), metadata=None):
        state = self.state_dict(prefix="", keep_vars=True)
        return make_sharded_tensors_for_checkpoint(state, prefix, {name: 0 for name in state}, sharded_offsets)


def release():
    """Forgets all plans: before destroy_process_group(), with cpnsa.torch.release()."""
    _plans.clear()
