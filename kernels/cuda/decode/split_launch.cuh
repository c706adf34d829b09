#pragma once

// From an op's arguments to a launch of a kernel that splits keys.

#include <algorithm>
#include <type_traits>

#include "kernels/cuda/common/packs.cuh"
#include "kernels/cuda/decode/launch.cuh"
#include "kernels/cuda/decode/split_attention.cuh"

namespace cpnsa::cuda::decode {

/// Calls function(std::type_identity<SplitShape<...>>{}) with the smallest head dimensions that hold the layer's, and
/// with one fragment if `rows_per_tile` fit it, else up to MaxFragments. The number of fragments changes no result.
template <int MaxFragments, class Function>
void visit_split_shape(const OpContext& a, std::int64_t rows_per_tile, Function&& function) {
  const std::int64_t d_qk = a.config->head_dim_qk, d_v = a.config->head_dim_v;
  visit_type(a.dtype, [&]<class T>(std::type_identity<T>) {
    const auto visit = [&]<int Dqk, int Dv, int Fragments>(std::type_identity<SplitShape<T, Dqk, Dv, Fragments>> many) {
      if (rows_per_tile <= 16) return function(std::type_identity<SplitShape<T, Dqk, Dv, 1>>{});
      return function(many);
    };
    if (d_qk <= 64 && d_v <= 64) return visit(std::type_identity<SplitShape<T, 64, 64, MaxFragments>>{});
    if (d_qk <= 128 && d_v <= 128) return visit(std::type_identity<SplitShape<T, 128, 128, MaxFragments>>{});
    if (d_qk <= 192 && d_v <= 128) return visit(std::type_identity<SplitShape<T, 192, 128, 2>>{});
    return visit(std::type_identity<SplitShape<T, 256, 256, 2>>{});
  });
}

/// Thread blocks of a shape that a multiprocessor with 228 KiB of shared memory holds, at most 3: a fourth would leave
/// too few registers.
template <class Shape>
constexpr int resident_blocks() {
  constexpr int by_memory = 228 * 1024 / (Shape::shared_bytes + 5632), by_registers = 65536 / 160 / Shape::threads;
  return std::max(1, std::min({3, by_memory, by_registers}));
}

template <class T>
KeyPools<T> key_pools(const Config& config, const void* k, const void* v, std::int64_t k_rows, std::int64_t v_rows) {
  const auto groups = static_cast<int>(config.num_kv_heads);
  const auto d_qk = static_cast<int>(config.head_dim_qk), d_v = static_cast<int>(config.head_dim_v);
  return {static_cast<const T*>(k),
          static_cast<const T*>(v),
          static_cast<int>(k_rows),
          static_cast<int>(v_rows),
          groups * d_qk,
          groups * d_v,
          d_qk,
          d_v};
}

/// The pools of one KV head.
template <class T>
__device__ __forceinline__ KeyPools<T> of_head(KeyPools<T> pools, int head) {
  pools.k += head * pools.d_qk;
  pools.v += head * pools.d_v;
  return pools;
}

}  // namespace cpnsa::cuda::decode
