#include "src/layer/arguments.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "cpnsa/error.hpp"
#include "cpnsa/log.hpp"
#include "cpnsa/schema.hpp"
#include "src/layer/tensor_checks.hpp"

namespace cpnsa {
namespace {

void check_gradients(const TensorChecks& check, const LayerPlan& layer, const AttentionInputs& inputs,
                     const AttentionGradients& gradients) {
  schema::for_each_tensor(
      [&](const schema::Tensor& tensor, const TensorView& view, const TensorView& input) {
        const std::string name = tensor.gradient_name().str();
        check.used(view, tensor, name);
        const DType dtype = tensor.per_token ? layer.gradient_dtype : layer.parameter_gradient_dtype;
        if (view || (tensor.per_token && input)) check.tensor(view, name, dtype, tensor.shape);
        if (view && !input)
          throw ArgumentError(fmt::format("{}: found one, expected none without {}", name, tensor.name.view()));
      },
      gradients, inputs);
}

TensorChecks checks_of(const LayerPlan& layer, const Device& device) {
  return {layer.config, layer.options.dtype, layer.plan.rows, device, layer.options};
}

[[noreturn]] void no_branch(const LayerPlan& layer, const std::string& name) {
  throw ArgumentError(
      fmt::format("{}: found one, expected none: the layer's branches are {}", name, name_of(layer.config.branches)));
}

void check_rotation(const TensorChecks& check, const LayerPlan& layer, const SummaryRotation& rotation) {
  if (!rotation.cos && !rotation.sin) return;
  std::int64_t summaries = 0;
  for (const planning::Document& document : layer.plan.layout.documents)
    summaries = std::max(summaries, document.summaries);
  const std::int64_t pairs = rotation.cos.rank == 2 ? rotation.cos.shape[1] : 0;
  if (pairs < 1 || 2 * pairs > layer.config.head_dim_qk || rotation.cos.shape[0] < summaries)
    throw ArgumentError(fmt::format("summary_rotation.cos: found {}, expected [at least {} summaries, 1 to {} pairs]",
                                    describe(rotation.cos), summaries, layer.config.head_dim_qk / 2));
  const std::array shape{rotation.cos.shape[0], pairs};
  const auto table = [&](const TensorView& view, const std::string& name) {
    expect(view, name, layer.accumulate, shape);
    check.memory(view.data, view.bytes(), size_of(layer.accumulate), name);
  };
  table(rotation.cos, "summary_rotation.cos");
  table(rotation.sin, "summary_rotation.sin");
}

void check_inputs(const TensorChecks& check, const LayerPlan& layer, const AttentionInputs& inputs) {
  check.inputs(inputs);
  if (layer.options.compressed_query && !inputs.q_cmp)
    throw ArgumentError("q_cmp: found none, expected one (compressed_query)");
  if (inputs.sink_slc && !layer.has_branch(1)) no_branch(layer, "sink_slc");
  if (inputs.sink_win && !layer.has_branch(2)) no_branch(layer, "sink_win");
  if (layer.plan.rows > 0 && layer.options.given_selection != (inputs.selected != nullptr))
    throw ArgumentError(fmt::format("inputs.selected: found {}, expected {} (given_selection)",
                                    inputs.selected ? "one" : "none", inputs.selected ? "none" : "one"));
  if (inputs.selected) check.memory(inputs.selected, layer.selected_bytes(), alignof(std::int32_t), "inputs.selected");
  check_rotation(check, layer, inputs.summary_rotation);
}

void check_log_sum_exps(const TensorChecks& check, const LayerPlan& layer, const BranchTensors& views) {
  const std::array list{&views.cmp, &views.slc, &views.win};
  for (std::size_t branch = 0; branch < list.size(); ++branch) {
    if (!*list[branch]) continue;
    const std::string name = fmt::format("log_sum_exp.{}", schema::branches[branch]);
    if (!layer.has_branch(static_cast<int>(branch))) no_branch(layer, name);
    check.tensor(*list[branch], name, layer.accumulate, schema::log_sum_exp_shape);
  }
}

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

// Throws UnsupportedError unless the communicator has what Exchange::pull needs.
void check_pull(Communicator& communicator, Exchange exchange) {
  if (exchange != Exchange::pull || communicator.size() == 1) return;
  if (!communicator.one_sided())
    throw UnsupportedError(fmt::format(
        "exchange: found pull over {}, expected a transport whose ranks read each other's memory (threads), "
        "or auto, fetch or gather",
        communicator.name()));
  if (communicator.size() > RankPointers::max_ranks)
    throw UnsupportedError(fmt::format("exchange: found pull of {} ranks, expected {} at most", communicator.size(),
                                       RankPointers::max_ranks));
}

}  // namespace

void validate_layer(const Config& config, const Partition& partition, Device& device, Communicator& communicator,
                    const AttentionOptions& options) {
  static_cast<void>(log_level());  // reports a wrong CPNSA_LOG
  config.validate();
  device.check_supported(config, options.dtype);
  communicator.check_device(device);
  check_pull(communicator, options.exchange);
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
  const TensorChecks check = checks_of(layer, device);
  check_inputs(check, layer, given.inputs);
  check.tensor(given.out, "out", layer.options.dtype, schema::out_shape);
  check_log_sum_exps(check, layer, given.log_sum_exp);
  if (given.selected && !layer.has_branch(1)) no_branch(layer, "selected");
  if (given.selected) check.memory(given.selected, layer.selected_bytes(), alignof(std::int32_t), "selected");
  if (layer.options.backward != (given.saved != nullptr))
    throw ArgumentError(fmt::format("saved: found {}, expected {}", given.saved ? "one" : "none",
                                    layer.options.backward ? "one, for the backward" : "none, without a backward"));
  if (given.saved) check.buffer(given.saved->memory, layer.saved_bytes, "saved");
  check.buffer(given.workspace, layer.forward_bytes, "workspace");
}

void validate_selection(const LayerPlan& layer, Device& device, Communicator& communicator,
                        const std::int32_t* selected, Stream stream) {
  if (!layer.options.given_selection || !layer.has_branch(1) || layer.plan.rows == 0) return;
  std::vector<std::int32_t> copy(layer.selected_bytes() / sizeof(std::int32_t));
  device.copy(copy.data(), selected, layer.selected_bytes(), stream);
  communicator.wait(device, stream);
  const std::int64_t groups = layer.config.num_kv_heads, count = layer.config.select_count;
  for (const Segment& segment : layer.plan.segments)
    for (std::int64_t i = 0; i < segment.rows * groups; ++i) {
      const std::int64_t row = segment.row + i / groups, group = i % groups;
      const std::int64_t last = (segment.position + i / groups) / layer.config.select_block;
      const std::int32_t* const blocks = copy.data() + (row * groups + group) * count;
      for (std::int64_t n = 0; n < count; ++n) {
        const bool padding = n > 0 && blocks[n] == -1;
        const bool follows = n == 0 || (blocks[n - 1] != -1 && blocks[n] > blocks[n - 1]);
        if (padding || (follows && blocks[n] >= 0 && blocks[n] <= last)) continue;
        throw ArgumentError(fmt::format(
            "inputs.selected: found block {} at row {}, KV head {}, entry {}; expected blocks from 0 to {}, "
            "ascending, at least one, then -1",
            blocks[n], row, group, n, last));
      }
    }
}

void validate_backward(const LayerPlan& layer, const Device& device, const BackwardArguments& given) {
  const TensorChecks check = checks_of(layer, device);
  check_inputs(check, layer, given.inputs);
  check.tensor(given.dout, "dout", layer.options.dtype, schema::out_shape);
  check_gradients(check, layer, given.inputs, given.gradients);
  check.buffer(given.saved_memory, layer.saved_bytes, "saved");
  check.buffer(given.workspace, layer.backward_bytes, "workspace");
}

}  // namespace cpnsa
