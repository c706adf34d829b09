#pragma once

// The (query, head) pairs that the rows of a tile are, of the query heads of one KV head.

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/common/problem.cuh"
#include "kernels/cuda/ptx/sm80.cuh"
#include "kernels/cuda/sm90/shapes.hpp"
#include "kernels/cuda/sm90/shared_memory.cuh"

namespace cpnsa::cuda::sm90 {

/// Groups of `Rows` rows: row r of a group is head r % heads() of query r / heads(), and rows from num_rows() on are
/// padding. A KV head with more than `Rows` query heads has its heads in parts() slices; slices are numbered over all
/// KV heads. Every number is a constant in a kernel for a fixed number of heads.
template <int Heads, int Rows>
struct HeadRows {
  static constexpr bool has_padding = false;
  static_assert(Rows % Heads == 0);

  explicit constexpr HeadRows(int /*heads_per_group*/) {}
  static constexpr HeadRows recomputed(int heads_per_group) { return HeadRows(heads_per_group); }
  static constexpr int heads_per_group() { return Heads; }
  static constexpr int parts() { return 1; }
  static constexpr int heads() { return Heads; }
  static constexpr int queries() { return Rows / Heads; }
  static constexpr int num_rows() { return Rows; }
  static constexpr int query(int row) { return row / Heads; }
  static constexpr int head(int row) { return row % Heads; }
  static constexpr int kv_head(int slice) { return slice; }
  static constexpr int first_head(int slice) { return slice * Heads; }
  static constexpr int first_head(int kv_head, int /*part*/) { return kv_head * Heads; }
  static constexpr bool has_head(int /*part*/, int /*head*/) { return true; }
  static constexpr int part(int /*slice*/) { return 0; }
};

template <int Rows>
struct HeadRows<any_heads, Rows> {
  static constexpr bool has_padding = true;

  explicit constexpr HeadRows(int heads_per_group) : heads_per_group_(heads_per_group), split_(Rows, heads_per_group) {}
  /// With fewer `queries` than the rows would hold.
  HeadRows(int heads_per_group, int queries) : HeadRows(heads_per_group) {
    split_.queries = std::min(split_.queries, queries);
  }
  /// The same, computed where it is called, so that its numbers take no registers before.
  static __device__ HeadRows recomputed(int heads_per_group) { return HeadRows(ptx::opaque(heads_per_group)); }
  constexpr int heads_per_group() const { return heads_per_group_; }
  constexpr int parts() const { return split_.parts; }
  constexpr int heads() const { return split_.heads; }
  constexpr int queries() const { return split_.queries; }
  constexpr int num_rows() const { return split_.queries * split_.heads; }
  /// Rows of padding count as the last query's.
  constexpr int query(int row) const {
    const int query = row / split_.heads;
    return query < split_.queries ? query : split_.queries - 1;
  }
  constexpr int head(int row) const { return row % split_.heads; }
  constexpr int kv_head(int slice) const { return slice / split_.parts; }
  constexpr int part(int slice) const { return slice % split_.parts; }
  constexpr int first_head(int slice) const { return first_head(kv_head(slice), part(slice)); }
  constexpr int first_head(int kv_head, int part) const { return kv_head * heads_per_group_ + part * split_.heads; }
  /// False beyond the last head of a KV head: a box of its last part may reach into the next KV head's.
  constexpr bool has_head(int part, int head) const { return part * split_.heads + head < heads_per_group_; }

 private:
  int heads_per_group_;
  HeadSplit split_;
};

/// The (query, head) row, in [rows, H], of row `row` of the tile's `group`-th group; -1 for padding and beyond the
/// tile's end.
template <class Rows>
__device__ __forceinline__ std::int64_t head_row_of(const Rows& rows, const QueryTile& tile, int slice, int group,
                                                    int row, int num_q_heads) {
  const int query = group * rows.queries() + rows.query(row), head = rows.head(row);
  if (row >= rows.num_rows() || query >= tile.rows || !rows.has_head(rows.part(slice), head)) return -1;
  return (tile.row + query) * num_q_heads + rows.first_head(slice) + head;
}

/// Zeroes the padding of every group of `Group` rows of a tile, which no copy writes. All threads call it before a
/// barrier of theirs.
template <int Group, class Tile, class Rows>
__device__ __forceinline__ void zero_padding(Tile& tile, const Rows& rows) {
  if constexpr (Rows::has_padding) {
    constexpr int words = swizzle_bytes / static_cast<int>(sizeof(int4));
    for (int i = static_cast<int>(threadIdx.x); i < Tile::num_panels * Tile::num_rows * words; i += blockDim.x)
      if (i / words % Group >= rows.num_rows()) reinterpret_cast<int4*>(&tile)[i] = int4{0, 0, 0, 0};
    ptx::fence_proxy_async();
  }
}

/// The layer's head dimensions: constants in a kernel for a fixed number of heads, whose tiles are as wide.
template <class Shape, class Problem>
__device__ __forceinline__ int layer_d_qk(const Problem& a) {
  return Shape::heads_per_group == any_heads ? a.d_qk : Shape::d_qk;
}
template <class Shape, class Problem>
__device__ __forceinline__ int layer_d_v(const Problem& a) {
  return Shape::heads_per_group == any_heads ? a.d_v : Shape::d_v;
}

}  // namespace cpnsa::cuda::sm90
