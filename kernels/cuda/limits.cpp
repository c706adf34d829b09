#include "kernels/cuda/limits.hpp"

#include <fmt/format.h>

#include <string_view>

#include "cpnsa/error.hpp"

namespace cpnsa::cuda {
namespace {

constexpr std::int64_t head_dim_step = 8;
constexpr std::int64_t most_head_dim = 256;
constexpr std::int64_t hidden_step = 8;

[[noreturn]] void refuse(std::string_view key, std::string_view found) {
  throw UnsupportedError(fmt::format(
      "cuda device: found {} {}, supported are dtype bf16 and f16; head_dim_qk and head_dim_v multiples of {} up to "
      "{}; hidden widths of the mlp compressor multiples of {}",
      key, found, head_dim_step, most_head_dim, hidden_step));
}

void check_head_dim(std::string_view key, std::int64_t dim) {
  if (dim % head_dim_step != 0 || dim > most_head_dim) refuse(key, fmt::to_string(dim));
}

void check_hidden(std::string_view key, std::int64_t hidden) {
  if (hidden % hidden_step != 0) refuse(key, fmt::to_string(hidden));
}

/// What the attention kernels ask for beyond the above.
void check_attention_limits(const Config&) {}

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
