#pragma once

// The attention kernel for every GPU of compute capability 8.0 or later: a thread block takes 64 (query, head) rows of
// one KV head, a warp 16 of them, and walks the key tiles that a key source lists. The three branches differ in their
// key source alone. The result of a row does not depend on the other rows of its block: tiles that the row does not see
// leave it as it was, bit for bit. Head dimensions below the template's are padded with zeros in shared memory.

#include <concepts>
#include <cstdint>

#include "kernels/cuda/common/problem.cuh"
#include "kernels/cuda/common/warp_rows.cuh"
#include "kernels/cuda/sm80/shapes.hpp"

namespace cpnsa::cuda::sm80 {

/// Compile-time shape of the kernel.
template <class Element, int Dqk, int Dv>
struct AttentionShape {
  using T = Element;
  static constexpr int d_qk = Dqk;
  static constexpr int d_v = Dv;
  static constexpr int rows = rows_per_tile;
  static constexpr int warps = rows / 16;
  static constexpr int threads = warps * 32;
  static constexpr int keys = Dqk > 128 ? 32 : 64;  // two stages fit the 99 KiB of the smaller GPUs
  static constexpr int stages = 2;
  using Queries = SwizzledTile<rows, Dqk>;
  using Keys = SwizzledTile<keys, Dqk>;
  using Values = SwizzledTile<keys, Dv>;
  static constexpr int stage_bytes = Keys::bytes + Values::bytes;
  /// Shared memory without that of the key source.
  static constexpr int shared_bytes = Queries::bytes + stages * stage_bytes;
};

/// The keys of a query tile.
template <class Source, class T>
concept KeySource = requires(const Source& source, int tile, int query, int row) {
  { source.tiles() } -> std::same_as<int>;                      // number of key tiles, the same for all threads
  { source.wanted(tile, query, query) } -> std::same_as<bool>;  // whether some query of a range sees a key of the tile
  { source.key_row(tile, row) } -> std::same_as<const T*>;      // a row of the tile, null past its end
  { source.value_row(tile, row) } -> std::same_as<const T*>;
  { source.visible(tile, query) } -> std::same_as<KeyRange>;  // rows of the tile that the query sees
};

/// The query heads of one KV head that a tile has: all of them, or a slice where they are more than its rows.
struct HeadSlice {
  int group;  ///< KV head
  int first;  ///< query head
  int heads;

  /// `index`: of the slice among those of all KV heads from `first_group` on.
  template <class T>
  __device__ HeadSlice(const AttentionProblem<T>& a, int index, int first_group = 0) {
    const int slices = num_head_slices(a.heads_per_group), before = index % slices * rows_per_tile;
    group = first_group + index / slices;
    first = group * a.heads_per_group + before;
    heads = min(rows_per_tile, a.heads_per_group - before);
  }
};

/// The query and head of one of the block's 64 rows.
struct TileRow {
  int query;              ///< in the tile
  std::int64_t head_row;  ///< row * H + head, -1 for a row that the tile does not have

  template <class T>
  __device__ TileRow(const AttentionProblem<T>& a, const QueryTile& tile, const HeadSlice& slice, int index)
      : query(index / slice.heads),
        head_row(query < tile.rows ? (tile.row + query) * a.num_q_heads + slice.first + index % slice.heads : -1) {}
};

template <class Shape>
__device__ __forceinline__ void load_queries(const AttentionProblem<typename Shape::T>& a, const QueryTile& tile,
                                             const HeadSlice& slice, std::uint32_t destination) {
  load_rows<typename Shape::Queries, Shape::threads>(destination, a.d_qk, a.q,
                                                     [&](int index) -> const typename Shape::T* {
                                                       const TileRow row(a, tile, slice, index);
                                                       return row.head_row >= 0 ? a.q + row.head_row * a.d_qk : nullptr;
                                                     });
}

/// Starts loading the keys and values of a tile into a stage of the ring.
template <class Shape, class Source>
__device__ __forceinline__ void load_key_tile(const AttentionProblem<typename Shape::T>& a, const Source& source,
                                              int tile, std::uint32_t stage) {
  using T = typename Shape::T;
  load_rows<typename Shape::Keys, Shape::threads>(stage, a.d_qk, a.q,
                                                  [&](int r) -> const T* { return source.key_row(tile, r); });
  load_rows<typename Shape::Values, Shape::threads>(stage + Shape::Keys::bytes, a.d_v, a.q,
                                                    [&](int r) -> const T* { return source.value_row(tile, r); });
  ptx::cp_async_commit();
}

/// The whole of a thread block's work. `shared` is the address of Shape::shared_bytes.
template <class Shape, KeySource<typename Shape::T> Source>
__device__ __forceinline__ void attend(const AttentionProblem<typename Shape::T>& a, const QueryTile& tile,
                                       const HeadSlice& slice, const Source& source, std::uint32_t shared) {
  using T = typename Shape::T;
  const std::uint32_t queries = shared, ring = shared + Shape::Queries::bytes;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const TileRow rows[2] = {{a, tile, slice, warp * 16 + lane / 4}, {a, tile, slice, warp * 16 + lane / 4 + 8}};
  const int first_query = warp * 16 / slice.heads;
  const int last_query = min(tile.rows, (warp * 16 + 15) / slice.heads + 1);

  const auto load_stage = [&](int index) {
    load_key_tile<Shape>(a, source, index, ring + index % Shape::stages * Shape::stage_bytes);
  };

  SoftmaxRows state;
  float o[Shape::d_v / 8][4] = {};
  const int tiles = source.tiles();
  if (tiles > 0) {  // else nothing would wait for the queries
    load_queries<Shape>(a, tile, slice, queries);
    load_stage(0);
  }
  for (int index = 0; index < tiles; ++index) {
    if (index + 1 < tiles) {
      load_stage(index + 1);
      ptx::cp_async_wait<1>();
    } else {
      ptx::cp_async_wait<0>();
    }
    __syncthreads();
    if (first_query < last_query && source.wanted(index, first_query, last_query)) {
      const std::uint32_t stage = ring + index % Shape::stages * Shape::stage_bytes;
      float s[Shape::keys / 8][4];
      multiply_keys<T, typename Shape::Queries, typename Shape::Keys>(s, queries, warp * 16, stage);
      const KeyRange visible[2] = {rows[0].head_row >= 0 ? source.visible(index, rows[0].query) : KeyRange{0, 0},
                                   rows[1].head_row >= 0 ? source.visible(index, rows[1].query) : KeyRange{0, 0}};
#pragma unroll
      for (int n = 0; n < Shape::keys / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int key = n * 8 + lane % 4 * 2 + i % 2;
          const bool seen = key >= visible[i / 2].begin && key < visible[i / 2].end;
          s[n][i] = seen ? s[n][i] * a.scale_log2 : -INFINITY;
        }
      online_softmax(state, s, o);
      multiply_values<T, typename Shape::Values>(o, s, stage + Shape::Keys::bytes);
    }
    __syncthreads();
  }

  state.finish();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (rows[half].head_row < 0) continue;
    const float factor = state.inverse_sum(half);
    T* const out = a.out + rows[half].head_row * a.d_v;
#pragma unroll
    for (int n = 0; n < Shape::d_v / 8; ++n) {
      const int column = n * 8 + lane % 4 * 2;
      if (column < a.d_v)
        *reinterpret_cast<std::uint32_t*>(out + column) =
            narrow2<T>(o[n][2 * half] * factor, o[n][2 * half + 1] * factor);
    }
    if (lane % 4 == 0) a.log_sum_exp[rows[half].head_row] = state.log_sum_exp(half);
  }
}

}  // namespace cpnsa::cuda::sm80
