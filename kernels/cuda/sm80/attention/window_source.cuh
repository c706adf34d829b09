#pragma once

// The sliding window as a key source of a query tile.

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/sm80/attention/attention_tile.cuh"

namespace cpnsa::cuda::sm80 {

template <class Shape>
struct WindowTensors {
  using T = typename Shape::T;
  const T* k;       ///< [rows, G, d_qk]
  const T* v;       ///< [rows, G, d_v]
  const T* halo_k;  ///< [halo rows, G, d_qk]
  const T* halo_v;  ///< [halo rows, G, d_v]
  int window;       ///< w
};

/// Tokens from the first that the tile's first query sees to the tile's last, in tiles that begin at multiples of the
/// tile's size: a row's sums are then formed alike wherever its block of queries begins.
template <class Shape>
struct WindowSource {
  using T = typename Shape::T;
  WindowTensors<Shape> tensors;
  std::int64_t own_offset;   ///< local row of position p is own_offset + p, from `own_position` on
  std::int64_t halo_offset;  ///< and halo row halo_offset + p before it
  std::int64_t key_stride;
  std::int64_t value_stride;
  std::int64_t head_k;  ///< group * d_qk
  std::int64_t head_v;
  int own_position;  ///< position of the segment's first token
  int position;      ///< of the tile's first query
  int first;         ///< first position seen
  int last;          ///< one past the last
  int begin;         ///< `first`, rounded down to a tile

  __device__ WindowSource(const AttentionProblem<T>& a, const QueryTile& tile, const Segment& segment, int group,
                          const WindowTensors<Shape>& all)
      : tensors(all),
        own_offset(segment.row - segment.position),
        halo_offset(segment.halo_row - (segment.position - segment.halo_rows)),
        key_stride(static_cast<std::int64_t>(a.num_kv_heads) * a.d_qk),
        value_stride(static_cast<std::int64_t>(a.num_kv_heads) * a.d_v),
        head_k(static_cast<std::int64_t>(group) * a.d_qk),
        head_v(static_cast<std::int64_t>(group) * a.d_v),
        own_position(static_cast<int>(segment.position)),
        position(static_cast<int>(segment.position + tile.row - segment.row)),
        first(max(0, position - tensors.window + 1)),
        last(position + tile.rows),
        begin(first / Shape::keys * Shape::keys) {}

  __device__ int tiles() const { return (last - begin + Shape::keys - 1) / Shape::keys; }
  __device__ bool wanted(int tile, int from, int to) const {
    const int key = begin + tile * Shape::keys;
    return key < position + to && key + Shape::keys > position + from - tensors.window + 1;
  }
  __device__ const T* row(const T* own, const T* halo, std::int64_t stride, std::int64_t head, int tile, int r) const {
    const int key = begin + tile * Shape::keys + r;
    if (key < first || key >= last) return nullptr;
    return key >= own_position ? own + (own_offset + key) * stride + head : halo + (halo_offset + key) * stride + head;
  }
  __device__ const T* key_row(int tile, int r) const {
    return row(tensors.k, tensors.halo_k, key_stride, head_k, tile, r);
  }
  __device__ const T* value_row(int tile, int r) const {
    return row(tensors.v, tensors.halo_v, value_stride, head_v, tile, r);
  }
  __device__ KeyRange visible(int tile, int query) const {
    const int key = begin + tile * Shape::keys, end = position + query + 1;
    return {end - tensors.window - key, end - key};
  }
};

/// The stage's tensors, for WindowAttention and its backward alike.
template <class Shape, class Stage>
WindowTensors<Shape> window_tensors(const Stage& a) {
  using T = typename Shape::T;
  // A window as long as the document is any number beyond it: the kernel's positions are 32-bit.
  return {static_cast<const T*>(a.k), static_cast<const T*>(a.v), static_cast<const T*>(a.halo_k),
          static_cast<const T*>(a.halo_v), static_cast<int>(std::min<std::int64_t>(a.config->window, 1 << 30))};
}

}  // namespace cpnsa::cuda::sm80
