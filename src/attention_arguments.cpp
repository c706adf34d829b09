// Everything a caller can get wrong in a step, checked before anything is enqueued.

#include <fmt/format.h>

#include "cpnsa/error.hpp"
#include "src/attention_impl.hpp"

namespace cpnsa {

void Attention::Impl::check(const TensorView& view, const std::string& name, DType dtype,
                            std::initializer_list<std::int64_t> shape) const {
  expect(view, name, dtype, shape);
  device.check_pointer(view.data, view.bytes(), name);
}

void Attention::Impl::validate_compressor(const CompressorTensors& tensors, const std::string& prefix, std::int64_t dim,
                                          std::int64_t hidden, DType dtype, bool all_required) const {
  const std::int64_t heads = config.num_kv_heads, l = config.compress_block;
  const auto tensor = [&](const TensorView& view, const char* name, bool used, bool required,
                          std::initializer_list<std::int64_t> shape) {
    const std::string full = prefix + name;
    if (!used && view)
      throw ArgumentError(fmt::format("{}: found {}, expected no tensor with the {} compressor", full, describe(view),
                                      name_of(config.compressor)));
    if (used && (view || required)) check(view, full, dtype, shape);
  };
  const bool linear = config.compressor == Compressor::linear, mlp = config.compressor == Compressor::mlp;
  tensor(tensors.pos, "pos", true, false, {heads, l, dim});
  tensor(tensors.weight, "weight", linear, all_required, {heads, l * dim, dim});
  tensor(tensors.w1, "w1", mlp, all_required, {heads, l * dim, hidden});
  tensor(tensors.b1, "b1", mlp, all_required, {heads, hidden});
  tensor(tensors.w2, "w2", mlp, all_required, {heads, hidden, dim});
  tensor(tensors.b2, "b2", mlp, all_required, {heads, dim});
}

void Attention::Impl::validate_inputs(const AttentionInputs& inputs) const {
  const std::int64_t rows = plan.rows, q_heads = config.num_q_heads, heads = config.num_kv_heads;
  check(inputs.q, "q", options.dtype, {rows, q_heads, config.head_dim_qk});
  check(inputs.k.cmp, "k_cmp", options.dtype, {rows, heads, config.head_dim_qk});
  check(inputs.k.slc, "k_slc", options.dtype, {rows, heads, config.head_dim_qk});
  check(inputs.k.win, "k_win", options.dtype, {rows, heads, config.head_dim_qk});
  check(inputs.v.cmp, "v_cmp", options.dtype, {rows, heads, config.head_dim_v});
  check(inputs.v.slc, "v_slc", options.dtype, {rows, heads, config.head_dim_v});
  check(inputs.v.win, "v_win", options.dtype, {rows, heads, config.head_dim_v});
  check(inputs.gate, "gate", options.dtype, {rows, q_heads, 3});
  validate_compressor(inputs.compress_k, "compress_k_", config.head_dim_qk, config.compress_hidden_k, options.dtype,
                      true);
  validate_compressor(inputs.compress_v, "compress_v_", config.head_dim_v, config.compress_hidden_v, options.dtype,
                      true);
}

void Attention::Impl::validate_forward(const AttentionInputs& inputs, const TensorView& out,
                                       const std::int32_t* selected, const SavedForward* saved,
                                       const void* workspace) const {
  validate_inputs(inputs);
  check(out, "out", options.dtype, {plan.rows, config.num_q_heads, config.head_dim_v});
  if (selected)
    device.check_pointer(
        selected,
        static_cast<std::size_t>(plan.rows * config.num_kv_heads * config.select_count) * sizeof(std::int32_t),
        "selected");
  if (options.backward != (saved != nullptr))
    throw ArgumentError(fmt::format("saved: found {}, expected {}", saved ? "one" : "none",
                                    options.backward ? "one, for the backward" : "none, without a backward"));
  if (saved) device.check_pointer(saved->memory, saved_bytes, "saved");
  device.check_pointer(workspace, forward_bytes, "workspace");
}

void Attention::Impl::validate_backward(const AttentionInputs& inputs, const TensorView& dout,
                                        const SavedForward& saved, const AttentionGradients& gradients,
                                        const void* workspace) const {
  const std::int64_t rows = plan.rows, q_heads = config.num_q_heads, heads = config.num_kv_heads;
  if (!options.backward) throw ArgumentError("backward: found options.backward = false, expected true");
  if (saved.state().layer == 0) throw ArgumentError("saved: found none, expected that of a forward");
  if (saved.state().layer != number)
    throw ArgumentError("saved: found that of another layer's forward, expected this layer's");
  if (saved.state().spent)
    throw ArgumentError("saved: found that of a forward whose backward has run, expected another (reuse_saved)");
  validate_inputs(inputs);
  check(dout, "dout", options.dtype, {rows, q_heads, config.head_dim_v});
  check(gradients.q, "dq", gradient_type, {rows, q_heads, config.head_dim_qk});
  check(gradients.k.cmp, "dk_cmp", gradient_type, {rows, heads, config.head_dim_qk});
  check(gradients.k.slc, "dk_slc", gradient_type, {rows, heads, config.head_dim_qk});
  check(gradients.k.win, "dk_win", gradient_type, {rows, heads, config.head_dim_qk});
  check(gradients.v.cmp, "dv_cmp", gradient_type, {rows, heads, config.head_dim_v});
  check(gradients.v.slc, "dv_slc", gradient_type, {rows, heads, config.head_dim_v});
  check(gradients.v.win, "dv_win", gradient_type, {rows, heads, config.head_dim_v});
  check(gradients.gate, "dgate", gradient_type, {rows, q_heads, 3});
  validate_compressor(gradients.compress_k, "dcompress_k_", config.head_dim_qk, config.compress_hidden_k,
                      parameter_gradient_type, false);
  validate_compressor(gradients.compress_v, "dcompress_v_", config.head_dim_v, config.compress_hidden_v,
                      parameter_gradient_type, false);
  if (gradients.compress_k.pos && !inputs.compress_k.pos)
    throw ArgumentError("dcompress_k_pos: found one, expected none without compress_k_pos");
  if (gradients.compress_v.pos && !inputs.compress_v.pos)
    throw ArgumentError("dcompress_v_pos: found one, expected none without compress_v_pos");
  device.check_pointer(saved.memory, saved_bytes, "saved");
  device.check_pointer(workspace, backward_bytes, "workspace");
}

}  // namespace cpnsa
