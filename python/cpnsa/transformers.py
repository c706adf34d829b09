"""Hugging Face Transformers: a causal language model with native sparse attention, and its paged KV cache.

    config = cpnsa.transformers.NsaConfig(vocab_size=256, hidden_size=64, num_hidden_layers=2,
                                          attention=dict(num_q_heads=4, num_kv_heads=2, head_dim_qk=16, head_dim_v=16))
    model = cpnsa.transformers.NsaForCausalLM(config)
    model.generate(input_ids, max_new_tokens=100)
"""

import inspect
from typing import Optional

import torch
from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from . import _core
from .errors import ArgumentError
from .torch import Compressor, KvCache, NativeSparseAttention

__all__ = ["NsaCache", "NsaConfig", "NsaForCausalLM"]

#: The keyword argument of models that is their cache: it has another name in later versions of Transformers.
_CACHE = "cache" if "cache" in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters \
    else "past_key_values"


class NsaConfig(PretrainedConfig):
    """`attention` has the keyword arguments of a cpnsa.Config; `branch_kv` gives each branch keys and values of its
    own. `max_position_embeddings` is the length of the cache of an assistant model. `cache_page` is the number of
    tokens of a page of the cache, 0 the smallest."""

    model_type = "cpnsa"

    #: Settings of other models' attention, and their values that this model agrees with.
    _attention_elsewhere = {
        "attention_bias": (None, False), "attention_dropout": (None, 0), "attn_logit_softcapping": (None,),
        "head_dim": (None,), "num_attention_heads": (None,), "num_key_value_heads": (None,),
        "partial_rotary_factor": (None, 1), "rope_scaling": (None,), "sliding_window": (None,)}

    def __init__(self, vocab_size: int = 256, hidden_size: int = 64, num_hidden_layers: int = 2,
                 intermediate_size: Optional[int] = None, attention: Optional[dict] = None, branch_kv: bool = True,
                 rms_norm_eps: float = 1e-5, rope_theta: float = 10000.0, max_position_embeddings: int = 4096,
                 cache_page: int = 0, **keywords):
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, num_hidden_layers
        self.intermediate_size = 3 * hidden_size if intermediate_size is None else intermediate_size
        self.attention = attention or dict(num_q_heads=4, num_kv_heads=2, head_dim_qk=hidden_size // 4,
                                           head_dim_v=hidden_size // 4)
        self.branch_kv, self.rms_norm_eps, self.rope_theta = branch_kv, rms_norm_eps, rope_theta
        self.max_position_embeddings, self.cache_page = max_position_embeddings, cache_page
        for name, allowed in self._attention_elsewhere.items():
            if keywords.get(name) not in allowed:
                raise ArgumentError(f"{name}: found {keywords[name]!r}, expected {allowed[-1]}: attention=dict(...) "
                                    "has the settings of attention")
        keywords.setdefault("tie_word_embeddings", False)
        super().__init__(**keywords)

    def nsa(self) -> _core.Config:
        return _core.Config(**self.attention)


class NsaCache(Cache):
    """A KvCache as Transformers' generation uses it. Its memory is allocated by the first forward.

    Positions are those of the padded batch; tokens that the attention mask hides (padding on the left) are not in the
    cache."""

    is_sliding = is_linear = [False]
    is_compileable = False

    def __init__(self, config: NsaConfig, max_length: int):
        self.config, self.max_length = config, max_length
        self.layers = []
        self.pages = None
        self._seen = 0  # columns of the batch

    def step(self, mask: torch.Tensor, dtype: torch.dtype):
        """The step that appends the tokens of `mask` [batch, new columns]."""
        if self.pages is None:
            self.pages = KvCache(self.config.nsa(), mask.shape[0], self.max_length,
                                 layers=self.config.num_hidden_layers, dtype=dtype, device=mask.device,
                                 branch_kv=self.config.branch_kv, page=self.config.cache_page)
        if mask.shape[0] != self.pages.sequences:
            raise ArgumentError(f"past_key_values: found a batch of {mask.shape[0]}, expected {self.pages.sequences}")
        return self.pages.step(mask.sum(1).tolist())

    def advance(self, columns: int) -> None:
        self._seen += columns

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._seen

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        return self.max_length

    def get_mask_sizes(self, *arguments, **keywords):
        query = arguments[0] if arguments else keywords.get("query_length", keywords.get("cache_position"))
        return self._seen + (query if isinstance(query, int) else len(query)), 0

    def activate_past_recording(self) -> None:
        """Nothing: crop() can always go back."""

    def crop(self, max_length: int) -> None:
        """Cuts the batch back to `max_length` columns; or by -max_length of them, if that is not positive."""
        length = max_length if max_length > 0 else self._seen + max_length
        surplus = self._seen - length
        if surplus <= 0:
            return
        if self.pages is not None:
            for sequence, tokens in enumerate(self.pages.lengths):
                self.pages.cut(sequence, max(0, tokens - surplus))
        self._seen = length

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self.pages.reorder(beam_idx.tolist())

    def reset(self) -> None:
        if self.pages is not None:
            for sequence in range(self.pages.sequences):
                self.pages.release(sequence)
        self._seen = 0

    def __len__(self) -> int:
        return self.config.num_hidden_layers


class _RmsNorm(nn.Module):
    def __init__(self, width, epsilon):
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(torch.ones(width)), epsilon

    def forward(self, x):
        wide = x if x.dtype == torch.float64 else x.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)).to(x.dtype)


class _Rotary:
    """Turns pairs of channels (c, c + d / 2) of each head by angles that grow with the position."""

    def __init__(self, theta):
        self.theta = theta

    def __call__(self, x, positions):
        half = x.shape[-1] // 2
        rates = self.theta ** -(torch.arange(half, device=x.device, dtype=torch.float64) / max(half, 1))
        angles = positions[:, None, None] * rates
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        a, b = x[..., :half], x[..., half:2 * half]
        return torch.cat([a * cos - b * sin, a * sin + b * cos, x[..., 2 * half:]], -1)


class _Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.attention_norm = _RmsNorm(width, config.rms_norm_eps)
        self.attention = NativeSparseAttention(width, config.nsa(), branch_kv=config.branch_kv,
                                               rotary=_Rotary(config.rope_theta))
        self.mlp_norm = _RmsNorm(width, config.rms_norm_eps)
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x, cu_seqlens, cache):
        x = x + self.attention(self.attention_norm(x), cu_seqlens, cache=cache)
        y = self.mlp_norm(x)
        return x + self.down_proj(nn.functional.silu(self.gate_proj(y)) * self.up_proj(y))


class NsaForCausalLM(PreTrainedModel, GenerationMixin):
    """A decoder-only transformer: embedding, layers of native sparse attention and a gated MLP, RMS norms, a head.

    Padding is not computed: rows that `attention_mask` hides have logits of 0."""

    config_class = NsaConfig
    base_model_prefix = "model"
    _supports_cache_class = True
    _supports_static_cache = False
    _is_stateful = False

    def __init__(self, config: NsaConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([_Layer(config) for _ in range(config.num_hidden_layers)])
        self.norm = _RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module):
        if isinstance(module, Compressor) or type(module).__name__ == "_GateProjection":
            module.reset_parameters()
        elif isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, 0.0, 0.02)

    def get_input_embeddings(self):
        return self.embed_tokens

    def get_output_embeddings(self):
        return self.lm_head

    def make_cache(self, max_length: int) -> NsaCache:
        """An empty cache for sequences of up to `max_length` tokens."""
        return NsaCache(self.config, max_length)

    def forward(self, input_ids: torch.Tensor, attention_mask: Optional[torch.Tensor] = None,
                past_key_values: Optional[NsaCache] = None, labels: Optional[torch.Tensor] = None,
                use_cache: Optional[bool] = None, logits_to_keep: int = 0, cache: Optional[NsaCache] = None,
                **unused) -> CausalLMOutputWithPast:
        batch, columns = input_ids.shape
        cache = past_key_values if cache is None else cache
        if cache is not None and not isinstance(cache, NsaCache):
            raise ArgumentError(f"past_key_values: found {type(cache).__name__}, expected an NsaCache (make_cache)")
        if cache is None and use_cache:
            cache = self.make_cache(self.config.max_position_embeddings)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask[:, -columns:]
        rows = mask.bool().flatten().nonzero(as_tuple=True)[0]
        x = self.embed_tokens(input_ids.flatten()[rows])
        if cache is None:
            bounds = [0] + mask.sum(1).cumsum(0).tolist()
            for layer in self.layers:
                x = layer(x, bounds, None)
        elif len(rows) > 0:
            with cache.step(mask, x.dtype) as step:
                for index, layer in enumerate(self.layers):
                    x = layer(x, None, step[index])
        if cache is not None:
            cache.advance(columns)
        x = self.norm(x)
        hidden = x.new_zeros(batch * columns, x.shape[-1]).index_copy(0, rows, x).view(batch, columns, -1)
        logits = self.lm_head(hidden[:, -logits_to_keep:] if logits_to_keep else hidden)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, **{_CACHE: cache})

    # --- generation ---

    def _supports_default_dynamic_cache(self, *unused) -> bool:
        return False

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *arguments, **unused) -> None:
        if model_kwargs.get(_CACHE) is None and generation_config.use_cache:
            *_, max_length = [argument for argument in arguments if isinstance(argument, int)]
            if getattr(generation_config, "is_assistant", False):  # called again and again with one cache
                max_length = self.config.max_position_embeddings
            model_kwargs[_CACHE] = self.make_cache(max_length + 1)

    def prepare_inputs_for_generation(self, input_ids, next_sequence_length=None, past_key_values=None,
                                      attention_mask=None, use_cache=None, cache=None, logits_to_keep=0, **kwargs):
        cache = past_key_values if cache is None else cache
        if cache is not None and next_sequence_length is not None:
            input_ids = input_ids[:, -next_sequence_length:]
        elif cache is not None and input_ids.shape[1] > cache.get_seq_length():
            input_ids = input_ids[:, cache.get_seq_length():]
        return {"input_ids": input_ids, _CACHE: cache, "attention_mask": attention_mask, "use_cache": use_cache,
                "logits_to_keep": logits_to_keep or 0}

    def _reorder_cache(self, past_key_values, beam_idx):
        past_key_values.reorder_cache(beam_idx)
        return past_key_values
