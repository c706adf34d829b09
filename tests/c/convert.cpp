#include "tests/c/convert.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpnsa/schema.hpp"

namespace cpnsa::test {
namespace {

// The interface counts from 1 what the library counts from 0.
template <NamedEnum Enum>
std::int32_t to_c(Enum value) {
  return static_cast<std::int32_t>(value) + 1;
}

template <class Views>
cpnsa_tensors all_of(const Views& views) {
  cpnsa_tensors tensors = CPNSA_TENSORS_INIT;
  schema::for_each_tensor([](auto, cpnsa_tensor& to, const TensorView& from) { to = test::to_c(from); }, tensors,
                          views);
  return tensors;
}

}  // namespace

cpnsa_config to_c(const Config& config) {
  cpnsa_config c = CPNSA_CONFIG_INIT;
  c.num_q_heads = config.num_q_heads, c.num_kv_heads = config.num_kv_heads;
  c.head_dim_qk = config.head_dim_qk, c.head_dim_v = config.head_dim_v;
  c.compress_block = config.compress_block, c.compress_stride = config.compress_stride;
  c.select_block = config.select_block, c.select_count = config.select_count;
  c.init_blocks = config.init_blocks, c.local_blocks = config.local_blocks;
  c.window = config.window;
  c.softmax_scale = config.softmax_scale.value_or(0);
  c.compressor = to_c(config.compressor), c.activation = to_c(config.activation);
  c.gate = to_c(config.gate), c.branches = to_c(config.branches);
  c.compress_hidden_k = config.compress_hidden_k, c.compress_hidden_v = config.compress_hidden_v;
  return c;
}

cpnsa_options to_c(const AttentionOptions& options) {
  cpnsa_options c = CPNSA_OPTIONS_INIT;
  c.dtype = to_c(options.dtype), c.exchange = to_c(options.exchange);
  c.gradient_dtype = options.gradient_dtype ? to_c(*options.gradient_dtype) : 0;
  c.parameter_gradient_dtype = options.parameter_gradient_dtype ? to_c(*options.parameter_gradient_dtype) : 0;
  c.backward = options.backward, c.timing = options.timing;
  c.refetch_blocks = options.refetch_blocks, c.recompute_branches = options.recompute_branches;
  c.reuse_saved = options.reuse_saved;
  c.compare_parameters = options.compare_parameters;
  c.compressed_query = options.compressed_query, c.sinks = options.sinks;
  c.given_selection = options.given_selection;
  c.sum_parameter_gradients = options.sum_parameter_gradients;
  return c;
}

cpnsa_tensor to_c(const TensorView& view) {
  cpnsa_tensor tensor = CPNSA_TENSOR_NONE;
  if (!view) return tensor;
  tensor.data = view.data, tensor.dtype = to_c(view.dtype), tensor.rank = view.rank;
  std::copy(view.shape.begin(), view.shape.end(), tensor.shape);
  return tensor;
}

cpnsa_tensors to_c(const AttentionInputs& inputs) {
  cpnsa_tensors tensors = all_of(inputs);
  tensors.layer = inputs.layer;
  tensors.rotation_cos = to_c(inputs.summary_rotation.cos), tensors.rotation_sin = to_c(inputs.summary_rotation.sin);
  tensors.rotation_interleaved = inputs.summary_rotation.interleaved;
  tensors.selected = inputs.selected;
  return tensors;
}

cpnsa_tensors to_c(const AttentionGradients& gradients) {
  return all_of(gradients);
}

cpnsa_partition to_c(const Partition& partition) {
  std::vector<cpnsa_range> ranges;
  std::vector<std::size_t> counts;
  for (int rank = 0; rank < partition.ranks(); ++rank) {
    for (const TokenRange& range : partition.ranges(rank)) ranges.push_back({range.begin, range.end});
    counts.push_back(partition.ranges(rank).size());
  }
  cpnsa_partition made = nullptr;
  check_c(cpnsa_partition_create_custom(partition.cu_seqlens().data(), partition.cu_seqlens().size(),
                                        partition.select_block(), partition.ranks(), ranges.data(), counts.data(),
                                        &made));
  return made;
}

void check_c(cpnsa_status status) {
  if (status != CPNSA_SUCCESS)
    throw std::runtime_error(std::string(cpnsa_status_name(status)) + ": " + cpnsa_last_error());
}

}  // namespace cpnsa::test
