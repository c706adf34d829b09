#pragma once

#include <cstdint>

#include "cpnsa/ops.hpp"

namespace cpnsa::cuda {

/// Where the keys and values of blocks are, or their gradients: the rank's own tensors and the pool of fetched blocks.
template <class T>
struct BlockTensors {
  T* k;     ///< [rows, G, d_qk]
  T* v;     ///< [rows, G, d_v]
  T* pool;  ///< [slots][m d_qk + m d_v]
  int num_kv_heads;
  int d_qk;
  int d_v;
  int block_tokens;  ///< m
};

/// The stage's tensors, for SelectedAttention and its backward alike.
template <class T, class Stage>
BlockTensors<const T> block_tensors(const Stage& a) {
  const Config& config = *a.config;
  return {static_cast<const T*>(a.k),           static_cast<const T*>(a.v),
          static_cast<const T*>(a.pool),        static_cast<int>(config.num_kv_heads),
          static_cast<int>(config.head_dim_qk), static_cast<int>(config.head_dim_v),
          static_cast<int>(config.select_block)};
}

/// The same for one KV head: the row of a token of a block, wherever the block is.
template <class T>
struct BlockRows {
  T* k;
  T* v;
  T* pool;
  std::int64_t k_stride;
  std::int64_t v_stride;
  std::int64_t slot_stride;
  std::int64_t slot_values;  ///< offset of the values in a slot
  int d_qk;
  int d_v;

  __device__ BlockRows(const BlockTensors<T>& t, int group)
      : k(t.k + static_cast<std::int64_t>(group) * t.d_qk),
        v(t.v + static_cast<std::int64_t>(group) * t.d_v),
        pool(t.pool),
        k_stride(static_cast<std::int64_t>(t.num_kv_heads) * t.d_qk),
        v_stride(static_cast<std::int64_t>(t.num_kv_heads) * t.d_v),
        slot_stride(static_cast<std::int64_t>(t.block_tokens) * (t.d_qk + t.d_v)),
        slot_values(static_cast<std::int64_t>(t.block_tokens) * t.d_qk),
        d_qk(t.d_qk),
        d_v(t.d_v) {}

  __device__ T* key(BlockLocation at, int token) const {
    return at >= 0
               ? k + (at + static_cast<std::int64_t>(token)) * k_stride
               : pool + (-1 - static_cast<std::int64_t>(at)) * slot_stride + static_cast<std::int64_t>(token) * d_qk;
  }
  __device__ T* value(BlockLocation at, int token) const {
    return at >= 0 ? v + (at + static_cast<std::int64_t>(token)) * v_stride
                   : pool + (-1 - static_cast<std::int64_t>(at)) * slot_stride + slot_values +
                         static_cast<std::int64_t>(token) * d_v;
  }
};

}  // namespace cpnsa::cuda
