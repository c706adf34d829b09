"""Lists of Megatron-core's settings: honoured by the adapter, refused by it, and unrelated to attention.

Each field of TransformerConfig and of PackedSeqParams, and each argument of a core attention's forward, is in exactly
one of the lists. tests/python/test_megatron_settings.py holds them to the installed megatron-core.
"""

import dataclasses
import warnings

from ..errors import ArgumentError

__all__ = ["check", "check_packed", "core_arguments", "honoured", "packed_honoured", "packed_unrelated", "refused",
           "unrelated"]


def _words(text):
    return frozenset(text.split())


#: Fields of TransformerConfig that change attention: the projections around it (Megatron's own), or the adapter, take
#: them.
honoured = _words("""
    tensor_model_parallel_size sequence_parallel context_parallel_size max_seqlen_per_dp_cp_rank hybrid_context_parallel
    perform_initialization use_cpu_initialization init_model_with_meta_device init_method init_method_std
    output_layer_init_method fp16 bf16 params_dtype enable_autocast autocast_dtype deterministic_mode
    gradient_accumulation_fusion async_tensor_model_parallel_allreduce delay_wgrad_compute
    disable_parameter_transpose_cache tp_comm_overlap tp_comm_bulk_wgrad tp_comm_bulk_dgrad tp_comm_overlap_ag
    tp_comm_overlap_rs tp_comm_overlap_rs_dgrad tp_comm_split_ag tp_comm_atomic_ag tp_comm_split_rs tp_comm_atomic_rs
    tp_comm_overlap_disable_qkv symmetric_ar_type hidden_size num_attention_heads num_query_groups kv_channels
    softmax_scale apply_query_key_layer_scaling attention_softmax_in_fp32 attention_output_gate add_bias_linear
    add_qkv_bias qk_layernorm qk_l2_norm normalization layernorm_epsilon layernorm_zero_centered_gamma
    persist_layer_norm memory_efficient_layer_norm rotary_interleaved no_rope_freq mrope_section apply_rope_fusion
    fused_single_qkv_rope fp8 fp8_recipe fp8_param fp8_quantizer_factory fp8_margin fp8_interval fp8_amax_history_len
    fp8_amax_compute_algo fp8_wgrad tp_only_amax_red first_last_layers_bf16 num_layers_at_start_in_bf16
    num_layers_at_end_in_bf16 fp4 fp4_recipe fp4_param fp4_quantizer_factory quant_recipe use_kitchen test_mode
    disable_bf16_reduced_precision_matmul
""")

#: Fields that change no attention: other layers, schedules, optimizers, kernels of the dense attention that is
#: replaced.
unrelated = _words("""
    pipeline_model_parallel_comm_backend pipeline_model_parallel_size virtual_pipeline_model_parallel_size
    expert_model_parallel_size expert_tensor_parallel_size moe_extended_tp timers finalize_model_grads_func
    grad_scale_func no_sync_func grad_sync_func param_sync_func num_microbatches_with_partial_activation_checkpoints
    use_te_rng_tracker cross_entropy_loss_fusion cross_entropy_fusion_impl tp_comm_overlap_disable_fc1
    tp_comm_bootstrap_backend overlap_moe_expert_parallel_comm ep_overlap_early_attn_memory_release pipeline_dtype
    variable_seq_lengths overlap_p2p_comm batch_p2p_comm batch_p2p_sync use_ring_exchange_p2p
    deallocate_pipeline_outputs defer_embedding_wgrad_compute wgrad_deferral_limit overlap_p2p_comm_warmup_flush
    microbatch_group_size_per_vp_stage mtp_standalone cpu_offloading cpu_offloading_num_layers _cpu_offloading_context
    cpu_offloading_activations cpu_offloading_weights cpu_offloading_double_buffering barrier_with_L1_time num_layers
    mtp_num_layers mtp_loss_scaling_factor num_layers_in_first_pipeline_stage num_layers_in_last_pipeline_stage
    pipeline_model_parallel_layout account_for_embedding_in_pipeline_split account_for_loss_in_pipeline_split
    attention_backend ffn_hidden_size hidden_dropout fp32_residual_connection apply_residual_connection_post_layernorm
    gated_linear_unit activation_func activation_func_fp8_input_store glu_linear_offset activation_func_clamp_value
    num_moe_experts qk_clip_alpha qk_clip_threshold calculate_per_token_loss dsa_indexer_n_heads dsa_indexer_head_dim
    dsa_indexer_topk dsa_indexer_loss_coeff dsa_indexer_use_sparse_loss linear_attention_freq linear_conv_kernel_dim
    linear_key_head_dim linear_value_head_dim linear_num_key_heads linear_num_value_heads embedding_init_method
    embedding_init_method_std bias_activation_fusion masked_softmax_fusion bias_dropout_fusion
    use_fused_weighted_squared_relu recompute_method recompute_num_layers distribute_saved_activations
    kitchen_attention_backend moe_shared_expert_intermediate_size moe_shared_expert_gate moe_shared_expert_overlap
    moe_layer_freq moe_ffn_hidden_size moe_router_load_balancing_type moe_router_topk moe_enable_routing_replay
    moe_router_topk_limited_devices moe_router_padding_for_quantization moe_router_padding_for_fp8 moe_router_num_groups
    moe_router_group_topk moe_router_pre_softmax moe_router_topk_scaling_factor moe_router_score_function
    moe_router_dtype moe_router_enable_expert_bias moe_router_bias_update_rate moe_router_force_load_balancing
    moe_grouped_gemm moe_use_legacy_grouped_gemm moe_aux_loss_coeff moe_z_loss_coeff moe_input_jitter_eps
    moe_token_dropping moe_token_dispatcher_type moe_enable_deepep moe_flex_dispatcher_backend moe_per_layer_logging
    moe_expert_capacity_factor moe_pad_expert_input_to_capacity moe_token_drop_policy moe_layer_recompute
    moe_permute_fusion moe_router_fusion moe_apply_probs_on_input moe_latent_size moe_deepep_num_sms
    moe_hybridep_num_sms enable_cuda_graph external_cuda_graph cuda_graph_use_single_mempool
    cuda_graph_retain_backward_graph cuda_graph_warmup_steps clone_scatter_output_in_embedding config_logger_dir
    flash_decode use_te_activation_func inference_rng_tracker inference_sampling_seed use_inference_optimized_layers
    inference_fuse_tp_communication is_hybrid_model mamba_state_dim mamba_head_dim mamba_num_groups mamba_num_heads
    use_mamba_mem_eff_path mlp_chunks_for_prefill heterogeneous_block_specs hetereogenous_dist_checkpoint
    transformer_impl min_offloaded_tensor_size heterogeneous_layers_config_path heterogeneous_layers_config_encoded_json
    per_block_parameters
""")


def _graphed(config):
    """True if CUDA graphs would capture attention, whose steps read the block requests on the host."""
    if getattr(config, "cuda_graph_impl", "none") in (None, "none"):
        return False
    scope = getattr(config, "cuda_graph_scope", None) or ["full"]
    names = {getattr(one, "name", one) for one in ([scope] if isinstance(scope, str) else scope)}
    return bool(names & {"full", "full_iteration", "attn"})


def _of(name, allowed):
    return lambda config: getattr(config, name, allowed[0]) not in allowed


def _each(value):
    """The values of a setting that may be given once for all layers, or as a list with one per layer."""
    return value if isinstance(value, (list, tuple)) else [value]


_own_window = "expected none: the window is native_sparse(window=...)"

#: Fields whose values other than the default would change attention in a way that is not available: for each, whether a
#: configuration is refused, and what was expected.
refused = {
    "attention_dropout": (lambda config: bool(config.attention_dropout), "expected 0"),
    "softmax_type": (_of("softmax_type", ("vanilla",)), "expected 'vanilla': this adapter's layers have no sinks"),
    "window_size": (_of("window_size", (None,)), _own_window),
    "window_attn_skip_freq": (_of("window_attn_skip_freq", (None,)), _own_window),
    "qk_clip": (_of("qk_clip", (False,)), "expected False: the largest logit is not known"),
    "log_max_attention_logit": (_of("log_max_attention_logit", (False,)),
                                "expected False: the largest logit is not known"),
    "multi_latent_attention": (_of("multi_latent_attention", (False,)), "expected False"),
    "experimental_attention_variant": (_of("experimental_attention_variant", (None,)), "expected none"),
    "fp8_dot_product_attention": (_of("fp8_dot_product_attention", (False,)), "expected False"),
    "fp8_multi_head_attention": (_of("fp8_multi_head_attention", (False,)), "expected False"),
    "use_kitchen_attention": (_of("use_kitchen_attention", (False,)), "expected False"),
    "batch_invariant_mode": (_of("batch_invariant_mode", (False,)), "expected False"),
    "cp_comm_type": (lambda config: bool(set(_each(getattr(config, "cp_comm_type", None))) - {None, "p2p"}),
                     "expected 'p2p' or none: native_sparse(exchange=...) says how blocks are moved"),
    "hierarchical_context_parallel_sizes": (_of("hierarchical_context_parallel_sizes", (None,)), "expected none"),
    "recompute_granularity": (
        lambda config: config.recompute_granularity == "selective" and "core_attn" in (config.recompute_modules or ()),
        "expected 'full', or recompute_modules without 'core_attn', whose recomputation loses the gates' gradients"),
    "recompute_modules": (
        lambda config: config.recompute_granularity == "selective" and "core_attn" in (config.recompute_modules or ()),
        "expected none with 'core_attn', whose recomputation loses the gradients of the gates"),
    "fine_grained_activation_offloading": (
        lambda config: getattr(config, "fine_grained_activation_offloading", False)
        and "core_attn" in (config.offload_modules or ()), "expected offload_modules without 'core_attn'"),
    "offload_modules": (
        lambda config: getattr(config, "fine_grained_activation_offloading", False)
        and "core_attn" in (config.offload_modules or ()), "expected none with 'core_attn'"),
    "cuda_graph_impl": (_graphed, "expected 'none', or a cuda_graph_scope without attention: a step reads the block "
                                  "requests on the host"),
    "cuda_graph_scope": (_graphed, "expected one without attention, or cuda_graph_impl='none': a step reads the block "
                                   "requests on the host"),
}

packed_honoured = _words("""
    qkv_format cu_seqlens_q cu_seqlens_kv cu_seqlens_q_padded cu_seqlens_kv_padded local_cp_size cp_group
""")
#: Sizes for the kernels of the dense attention.
packed_unrelated = _words("max_seqlen_q max_seqlen_kv total_tokens seq_idx")

#: Arguments of a core attention's forward: honoured, or refused unless they are None.
core_arguments = {
    "query": "honoured", "key": "honoured", "value": "honoured", "attention_mask": "honoured",
    "attn_mask_type": "honoured", "packed_seq_params": "honoured", "attention_bias": "refused", "num_splits": "refused",
}


def check(config) -> None:
    """ArgumentError names the first setting of a TransformerConfig that attention would need and that is not available.
    A setting that a newer megatron-core has, and that is not at its default, is warned of."""
    for name, (wrong, expected) in refused.items():
        if hasattr(config, name) and wrong(config):
            raise ArgumentError(f"{name}: found {getattr(config, name)!r}, {expected}")
    for field in dataclasses.fields(config):
        known = field.name in honoured or field.name in unrelated or field.name in refused
        if not known and field.default is not dataclasses.MISSING and getattr(config, field.name) != field.default:
            warnings.warn(f"cpnsa.torch.megatron: TransformerConfig.{field.name} is not known; if it changes "
                          "attention, it is not honoured", stacklevel=2)


def check_packed(packed) -> None:
    """ArgumentError names the first field of PackedSeqParams that is not available. The values of bounds are checked
    where they are read."""
    if packed.qkv_format not in (None, "thd", "sbhd"):
        raise ArgumentError(f"qkv_format: found {packed.qkv_format!r}, expected 'thd' or 'sbhd'")
    for field in dataclasses.fields(packed):
        if field.name not in packed_honoured | packed_unrelated and getattr(packed, field.name) is not None:
            warnings.warn(f"cpnsa.torch.megatron: PackedSeqParams.{field.name} is not known; if it changes attention, "
                          "it is not honoured", stacklevel=2)
