#include "cpnsa/config.hpp"

#include <fmt/format.h>

#include <cmath>

#include "cpnsa/error.hpp"

namespace cpnsa {
namespace {

void require(bool holds, std::string_view key, std::int64_t found, const std::string& expected) {
  if (!holds) throw ConfigError(fmt::format("{}: found {}, expected {}", key, found, expected));
}

// Keeps products such as T * H * d_qk far from 2^63.
constexpr std::int64_t largest_extent = std::int64_t{1} << 31;

void require_between(std::string_view key, std::int64_t found, std::int64_t least) {
  require(found >= least && found <= largest_extent, key, found,
          fmt::format("a whole number from {} to {}", least, largest_extent));
}

}  // namespace

double Config::scale() const {
  return softmax_scale.value_or(1.0 / std::sqrt(static_cast<double>(head_dim_qk)));
}

std::int64_t Config::summaries_of(std::int64_t length) const {
  return length < compress_block ? 0 : (length - compress_block) / compress_stride + 1;
}

std::int64_t Config::blocks_of(std::int64_t length) const {
  return (length + select_block - 1) / select_block;
}

void Config::validate() const {
  require_between("num_q_heads", num_q_heads, 1);
  require_between("num_kv_heads", num_kv_heads, 1);
  require_between("head_dim_qk", head_dim_qk, 1);
  require_between("head_dim_v", head_dim_v, 1);
  require_between("compress_block", compress_block, 1);
  require_between("compress_stride", compress_stride, 1);
  require_between("select_block", select_block, 1);
  require_between("select_count", select_count, 1);
  require_between("init_blocks", init_blocks, 0);
  require_between("local_blocks", local_blocks, 0);
  require_between("window", window, 1);
  require(num_q_heads % num_kv_heads == 0, "num_q_heads", num_q_heads,
          fmt::format("a multiple of num_kv_heads = {}", num_kv_heads));
  require(compress_block % compress_stride == 0, "compress_stride", compress_stride,
          fmt::format("a divisor of compress_block = {}", compress_block));
  require(select_block % compress_stride == 0, "compress_stride", compress_stride,
          fmt::format("a divisor of select_block = {}", select_block));
  require(compress_block <= select_block, "compress_block", compress_block,
          fmt::format("at most select_block = {}", select_block));
  require(init_blocks + local_blocks <= select_count, "init_blocks + local_blocks", init_blocks + local_blocks,
          fmt::format("at most select_count = {}", select_count));
  if (softmax_scale && !std::isfinite(*softmax_scale))
    throw ConfigError(fmt::format("softmax_scale: found {}, expected a finite number", *softmax_scale));
  if (compressor == Compressor::mlp) {
    require_between("compress_hidden_k", compress_hidden_k, 1);
    require_between("compress_hidden_v", compress_hidden_v, 1);
  }
}

std::string Config::describe() const {
  return fmt::format(
      "num_q_heads={} num_kv_heads={} head_dim_qk={} head_dim_v={} compress_block={} compress_stride={} "
      "select_block={} select_count={} init_blocks={} local_blocks={} window={} softmax_scale={} compressor={} "
      "activation={} gate={} compress_hidden_k={} compress_hidden_v={}",
      num_q_heads, num_kv_heads, head_dim_qk, head_dim_v, compress_block, compress_stride, select_block, select_count,
      init_blocks, local_blocks, window, scale(), name_of(compressor), name_of(activation), name_of(gate),
      compress_hidden_k, compress_hidden_v);
}

}  // namespace cpnsa
