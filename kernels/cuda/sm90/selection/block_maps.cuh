#pragma once

#include "cpnsa/config.hpp"
#include "kernels/cuda/common/swizzle.hpp"
#include "kernels/cuda/sm90/shapes.hpp"
#include "kernels/cuda/sm90/tensor_map.hpp"

namespace cpnsa::cuda::sm90 {

/// Where blocks are copied from: the rank's own rows, and the pool of fetched blocks.
struct BlockMaps {
  CUtensorMap keys[2];  ///< own, in boxes of rows of one head; pool, in boxes of a slot's rows
  CUtensorMap values[2];
};

/// `box`: tokens that a copy brings. Where a slot has fewer, the rest is zeros.
template <class Stage>
BlockMaps block_maps(const Stage& a, int box) {
  const Config& config = *a.config;
  const std::int64_t tokens = config.select_block;
  const std::int64_t d_qk = config.head_dim_qk, d_v = config.head_dim_v, slot = tokens * (d_qk + d_v);
  const auto own = [&](const void* tensor, std::int64_t dim) {
    return make_tensor_map(tensor, a.dtype, rows_layout(a.queries->rows, config.num_kv_heads, dim, box, 1));
  };
  const auto pool = [&](std::int64_t offset, std::int64_t dim) {
    // SelectedAttention has no number of slots; the table names none that is not in use.
    constexpr std::int64_t slots = std::int64_t{1} << 24;
    const TensorLayout layout{{dim, tokens, slots}, {dim, slot}, {box, 1}};
    return make_tensor_map(static_cast<const std::byte*>(a.pool) + offset * element_bytes, a.dtype, layout);
  };
  const CUtensorMap own_keys = own(a.k, d_qk), own_values = own(a.v, d_v);
  // A rank that fetches nothing has no pool.
  return {{own_keys, a.pool ? pool(0, d_qk) : own_keys}, {own_values, a.pool ? pool(tokens * d_qk, d_v) : own_values}};
}

}  // namespace cpnsa::cuda::sm90
