#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "cpnsa/config.hpp"

namespace cpnsa::tool {

/// A whole-number key of config.json, and flag of `cpnsa bench`.
struct IntegerKey {
  std::string_view name;
  std::int64_t Config::*member;
  bool required;
};

inline constexpr std::array<IntegerKey, 11> integer_keys{{
    {"num_q_heads", &Config::num_q_heads, true},
    {"num_kv_heads", &Config::num_kv_heads, true},
    {"head_dim_qk", &Config::head_dim_qk, true},
    {"head_dim_v", &Config::head_dim_v, true},
    {"compress_block", &Config::compress_block, false},
    {"compress_stride", &Config::compress_stride, false},
    {"select_block", &Config::select_block, false},
    {"select_count", &Config::select_count, false},
    {"init_blocks", &Config::init_blocks, false},
    {"local_blocks", &Config::local_blocks, false},
    {"window", &Config::window, false},
}};

inline constexpr std::array compressors{Compressor::mean, Compressor::linear, Compressor::mlp};
inline constexpr std::array activations{Activation::silu, Activation::relu, Activation::gelu};
inline constexpr std::array gate_kinds{GateKind::logits, GateKind::values};

/// The largest number that the command takes for a size; Config::validate has narrower bounds.
inline constexpr std::int64_t largest_integer = std::int64_t{1} << 31;

}  // namespace cpnsa::tool
