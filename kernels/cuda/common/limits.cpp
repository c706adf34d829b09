#include "kernels/cuda/common/limits.hpp"

#include <fmt/format.h>

#include <string_view>

#include "cpnsa/error.hpp"

namespace cpnsa::cuda {
namespace {

constexpr std::int64_t head_dim_step = 8;
constexpr std::int64_t max_head_dim = 256;
constexpr std::int64_t hidden_step = 8;
constexpr std::int64_t slice_heads = 64;    ///< query heads of a KV head that a thread block has
constexpr std::int64_t max_slices = 65535;  ///< thread blocks in a grid's second dimension
constexpr std::int64_t max_select_count = 128;
constexpr std::int64_t max_summaries_per_block = 128;

[[noreturn]] void refuse(std::string_view key, std::string_view found) {
  throw UnsupportedError(fmt::format(
      "cuda device: found {} {}, supported are dtype bf16 and f16; head_dim_qk and head_dim_v multiples of {} up to "
      "{}; hidden widths of the mlp compressor multiples of {}; num_kv_heads times the slices of {} of a KV head's "
      "query heads up to {}; select_count up to {}; (select_block + compress_block) / compress_stride up to {}",
      key, found, head_dim_step, max_head_dim, hidden_step, slice_heads, max_slices, max_select_count,
      max_summaries_per_block));
}

void check_head_dim(std::string_view key, std::int64_t dim) {
  if (dim % head_dim_step != 0 || dim > max_head_dim) refuse(key, fmt::to_string(dim));
}

void check_hidden(std::string_view key, std::int64_t hidden) {
  if (hidden % hidden_step != 0) refuse(key, fmt::to_string(hidden));
}

/// Limits of the attention kernels' grids, and of their shared memory, which holds the best blocks so far and the
/// importances of incomplete blocks.
void check_attention_limits(const Config& config) {
  const std::int64_t slices = (config.heads_per_group() + slice_heads - 1) / slice_heads;
  if (config.num_kv_heads > max_slices / slices)
    refuse("num_kv_heads times slices of query heads", fmt::format("{} times {}", config.num_kv_heads, slices));
  if (config.select_count > max_select_count) refuse("select_count", fmt::to_string(config.select_count));
  const std::int64_t span = (config.select_block + config.compress_block) / config.compress_stride;
  if (span > max_summaries_per_block) refuse("(select_block + compress_block) / compress_stride", fmt::to_string(span));
}

}  // namespace

void check_limits(const Config& config, DType dtype) {
  if (dtype != DType::bf16 && dtype != DType::f16) refuse("dtype", name_of(dtype));
  check_head_dim("head_dim_qk", config.head_dim_qk);
  check_head_dim("head_dim_v", config.head_dim_v);
  if (config.compressor == Compressor::mlp) {
    check_hidden("compress_hidden_k", config.compress_hidden_k);
    check_hidden("compress_hidden_v", config.compress_hidden_v);
  }
  check_attention_limits(config);
}

}  // namespace cpnsa::cuda
