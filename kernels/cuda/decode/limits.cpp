#include <fmt/format.h>

#include <string_view>

#include "cpnsa/error.hpp"
#include "kernels/cuda/decode/run_op.hpp"

namespace cpnsa::cuda::decode {
namespace {

constexpr std::int64_t channel_step = 8;
constexpr std::int64_t max_head_dim = 256;
constexpr std::int64_t max_heads_per_group = 128;
constexpr std::int64_t max_select_count = 128;
constexpr std::int64_t max_summaries_per_block = 1024;
constexpr std::int64_t max_page = std::int64_t{1} << 20;

[[noreturn]] void refuse(std::string_view key, std::string_view found) {
  throw UnsupportedError(
      fmt::format("cuda device, decoding: found {} {}, supported are dtype bf16 and f16; head_dim_qk and head_dim_v "
                  "multiples of {} "
                  "up to {}; hidden widths of the mlp compressor multiples of {}; num_q_heads / num_kv_heads up to {}; "
                  "select_count "
                  "up to {}; (select_block + compress_block) / compress_stride up to {}; pages of up to {} tokens",
                  key, found, channel_step, max_head_dim, channel_step, max_heads_per_group, max_select_count,
                  max_summaries_per_block, max_page));
}

void check_range(std::string_view key, std::int64_t found, std::int64_t max) {
  if (found > max) refuse(key, fmt::to_string(found));
}
void check_step(std::string_view key, std::int64_t found) {
  if (found % channel_step != 0) refuse(key, fmt::to_string(found));
}

}  // namespace

void check_limits(const Config& config, DType dtype, std::int64_t page) {
  if (dtype != DType::bf16 && dtype != DType::f16) refuse("dtype", name_of(dtype));
  check_step("head_dim_qk", config.head_dim_qk), check_range("head_dim_qk", config.head_dim_qk, max_head_dim);
  check_step("head_dim_v", config.head_dim_v), check_range("head_dim_v", config.head_dim_v, max_head_dim);
  if (config.compressor == Compressor::mlp) {
    check_step("compress_hidden_k", config.compress_hidden_k);
    check_step("compress_hidden_v", config.compress_hidden_v);
  }
  check_range("num_q_heads / num_kv_heads", config.heads_per_group(), max_heads_per_group);
  check_range("select_count", config.select_count, max_select_count);
  check_range("(select_block + compress_block) / compress_stride",
              (config.select_block + config.compress_block) / config.compress_stride, max_summaries_per_block);
  check_range("page", page, max_page);
}

}  // namespace cpnsa::cuda::decode
