#include "src/layer/arguments.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>

#include "cpnsa/arena.hpp"
#include "cpnsa/error.hpp"
#include "cpnsa/schema.hpp"

namespace cpnsa {
namespace {

/// Checks one call's tensors.
class TensorChecks {
 public:
  TensorChecks(const LayerPlan& layer, const Device& device) : layer_(layer), device_(device) {}

  void tensor(const TensorView& view, const std::string& name, DType dtype, const schema::Shape& shape) const {
    expect(view, name, dtype, schema::sizes_of(shape, layer_.config, layer_.plan.rows));
    memory(view.data, view.bytes(), size_of(dtype), name);
  }

  void memory(const void* pointer, std::size_t bytes, std::size_t alignment, const std::string& name) const {
    device_.check_pointer(pointer, bytes, name);
    const auto address = reinterpret_cast<std::uintptr_t>(pointer);
    if (bytes > 0 && address % alignment != 0)
      throw ArgumentError(
          fmt::format("{}: found address {:#x}, expected one aligned to {} bytes", name, address, alignment));
  }
  /// A workspace or saved memory. Host allocators of other libraries align to a cache line.
  void buffer(const void* pointer, std::size_t bytes, const std::string& name) const {
    memory(pointer, bytes, device_.host_accessible() ? 64 : Arena::alignment, name);
  }

  void inputs(const AttentionInputs& inputs) const {
    schema::for_each_tensor(
        [&](const schema::Tensor& tensor, const TensorView& view) {
          const std::string name = tensor.name.str();
          check_used(view, tensor, name);
          if (view || (tensor.required && tensor.used_by(layer_.config.compressor)))
            this->tensor(view, name, layer_.options.dtype, tensor.shape);
        },
        inputs);
  }

  void gradients(const AttentionInputs& inputs, const AttentionGradients& gradients) const {
    schema::for_each_tensor(
        [&](const schema::Tensor& tensor, const TensorView& view, const TensorView& input) {
          const std::string name = tensor.gradient_name().str();
          check_used(view, tensor, name);
          const DType dtype = tensor.per_token ? layer_.gradient_dtype : layer_.parameter_gradient_dtype;
          if (view || tensor.per_token) this->tensor(view, name, dtype, tensor.shape);
          if (view && !input)
            throw ArgumentError(fmt::format("{}: found one, expected none without {}", name, tensor.name.view()));
        },
        gradients, inputs);
  }

 private:
  void check_used(const TensorView& view, const schema::Tensor& tensor, const std::string& name) const {
    const Compressor compressor = layer_.config.compressor;
    if (view && !tensor.used_by(compressor))
      throw ArgumentError(fmt::format("{}: found {}, expected no tensor with the {} compressor", name, describe(view),
                                      name_of(compressor)));
  }

  const LayerPlan& layer_;
  const Device& device_;
};

// Throws ConfigError for sizes whose products might not fit in 63 bits. Every buffer of a layer is smaller than one of
// these, and there are far fewer than 2^10 of them.
void check_sizes(const Config& config, std::int64_t tokens) {
  constexpr std::int64_t max_bytes = std::int64_t{1} << 53;
  const auto check = [&](const char* name, std::initializer_list<std::int64_t> factors) {
    std::int64_t bytes = size_of(DType::f64);
    for (const std::int64_t factor : factors)
      if (__builtin_mul_overflow(bytes, std::max<std::int64_t>(factor, 1), &bytes) || bytes > max_bytes)
        throw ConfigError(
            fmt::format("{}: found {}, expected a product of at most 2^50", name, fmt::join(factors, " * ")));
  };
  const auto of_heads = [&](const char* name, std::int64_t dim) {
    check(name, {tokens + config.window + config.compress_block, config.num_q_heads, dim});
  };
  of_heads("(tokens + window + compress_block) * num_q_heads * head_dim_qk", config.head_dim_qk);
  of_heads("(tokens + window + compress_block) * num_q_heads * head_dim_v", config.head_dim_v);
  check("tokens * num_kv_heads * select_count", {tokens, config.num_kv_heads, config.select_count});
  // A block is whole in a pool, however few of its tokens there are.
  check("(tokens + select_block) * num_kv_heads * (head_dim_qk + head_dim_v)",
        {tokens + config.select_block, config.num_kv_heads, config.head_dim_qk + config.head_dim_v});
  const auto of_parameters = [&](const char* name, std::int64_t dim, std::int64_t hidden) {
    check(name, {config.num_kv_heads, config.compress_block, dim, config.compressor == Compressor::mlp ? hidden : dim});
  };
  of_parameters("parameters of compress_k", config.head_dim_qk, config.compress_hidden_k);
  of_parameters("parameters of compress_v", config.head_dim_v, config.compress_hidden_v);
}

}  // namespace

void validate_layer(const Config& config, const Partition& partition, Device& device, const Communicator& communicator,
                    const AttentionOptions& options) {
  config.validate();
  device.check_supported(config, options.dtype);
  communicator.check_device(device);
  if (partition.ranks() != communicator.size())
    throw ArgumentError(fmt::format("partition: found {} ranks, expected {}, the communicator's size",
                                    partition.ranks(), communicator.size()));
  if (partition.select_block() != config.select_block)
    throw ArgumentError(fmt::format("partition: found select_block {}, expected {}, the configuration's",
                                    partition.select_block(), config.select_block));
  const auto check_type = [&](const char* name, std::optional<DType> found) {
    if (found && *found != options.dtype && *found != accumulate_dtype(options.dtype))
      throw ArgumentError(fmt::format("{}: found {}, expected {} or {}", name, name_of(*found), name_of(options.dtype),
                                      name_of(accumulate_dtype(options.dtype))));
  };
  check_type("gradient_dtype", options.gradient_dtype);
  check_type("parameter_gradient_dtype", options.parameter_gradient_dtype);
  check_sizes(config, partition.tokens());
}

void validate_forward(const LayerPlan& layer, const Device& device, const ForwardArguments& given) {
  const TensorChecks check(layer, device);
  check.inputs(given.inputs);
  check.tensor(given.out, "out", layer.options.dtype, schema::out_shape);
  if (given.selected) check.memory(given.selected, layer.selected_bytes(), alignof(std::int32_t), "selected");
  if (layer.options.backward != (given.saved != nullptr))
    throw ArgumentError(fmt::format("saved: found {}, expected {}", given.saved ? "one" : "none",
                                    layer.options.backward ? "one, for the backward" : "none, without a backward"));
  if (given.saved) check.buffer(given.saved->memory, layer.saved_bytes, "saved");
  check.buffer(given.workspace, layer.forward_bytes, "workspace");
}

void validate_backward(const LayerPlan& layer, const Device& device, const BackwardArguments& given) {
  const TensorChecks check(layer, device);
  check.inputs(given.inputs);
  check.tensor(given.dout, "dout", layer.options.dtype, schema::out_shape);
  check.gradients(given.inputs, given.gradients);
  check.buffer(given.saved_memory, layer.saved_bytes, "saved");
  check.buffer(given.workspace, layer.backward_bytes, "workspace");
}

}  // namespace cpnsa
