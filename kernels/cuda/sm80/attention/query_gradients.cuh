#pragma once

// dQ for every GPU: the walk of the forward kernel over the same key sources. A thread block takes 64
// (query, head) rows of one KV head, a warp 16 of them with their dQ in registers, so every row is one warp's to add
// to.

#include <cstdint>

#include "kernels/cuda/sm80/attention/gradient_tile.cuh"

namespace cpnsa::cuda::sm80 {

template <class Element, int Dqk, int Dv>
struct QueryGradientShape {
  using T = Element;
  static constexpr int d_qk = Dqk;
  static constexpr int d_v = Dv;
  static constexpr int rows = rows_per_tile;
  static constexpr int warps = rows / 16;
  static constexpr int threads = warps * 32;
  static constexpr int keys = Dqk > 192 ? 16 : 32;
  static constexpr int stages = 2;  // they fit the 99 KiB of the smaller GPUs
  using Queries = SwizzledTile<rows, Dqk>;
  using Douts = SwizzledTile<rows, Dv>;
  using Keys = SwizzledTile<keys, Dqk>;
  using Values = SwizzledTile<keys, Dv>;
  static constexpr int stage_bytes = Keys::bytes + Values::bytes;
  /// Shared memory without that of the key source.
  static constexpr int shared_bytes = Queries::bytes + Douts::bytes + stages * stage_bytes;
};

/// The statistics of one row that a lane works on.
struct GradientRow {
  float sum_log2 = 0.f;
  float weight = 0.f;
  float delta = 0.f;
  bool exists = false;  ///< and saw at least one key in the forward

  template <class T>
  __device__ GradientRow(const GradientProblem<T>& a, std::int64_t head_row) {
    if (head_row < 0) return;
    const float sum = a.log_sum_exp[head_row];
    exists = sum != -INFINITY;
    sum_log2 = sum * log2_e;
    weight = a.weights[head_row];
    delta = a.deltas[head_row];
  }
};

/// The whole of a thread block's work. `shared` is the address of Shape::shared_bytes.
template <class Shape, KeySource<typename Shape::T> Source>
__device__ __forceinline__ void add_query_gradients(const GradientProblem<typename Shape::T>& a, const QueryTile& tile,
                                                    const HeadSlice& slice, const Source& source,
                                                    std::uint32_t shared) {
  using T = typename Shape::T;
  const std::uint32_t queries = shared, douts = queries + Shape::Queries::bytes, ring = douts + Shape::Douts::bytes;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const TileRow rows[2] = {{a, tile, slice, warp * 16 + lane / 4}, {a, tile, slice, warp * 16 + lane / 4 + 8}};
  const GradientRow given[2] = {{a, rows[0].head_row}, {a, rows[1].head_row}};
  const int first_query = warp * 16 / slice.heads;
  const int last_query = min(tile.rows, (warp * 16 + 15) / slice.heads + 1);

  const auto load_stage = [&](int index) {
    load_key_tile<Shape>(a, source, index, ring + index % Shape::stages * Shape::stage_bytes);
  };

  const int tiles = source.tiles();
  if (tiles == 0) return;
  float dq[Shape::d_qk / 8][4] = {};
  load_queries<Shape>(a, tile, slice, queries);
  load_rows<typename Shape::Douts, Shape::threads>(douts, a.d_v, a.q, [&](int index) -> const T* {
    const TileRow row(a, tile, slice, index);
    return row.head_row >= 0 ? a.dout + row.head_row * a.d_v : nullptr;
  });
  load_stage(0);
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
      float s[Shape::keys / 8][4], ds[Shape::keys / 8][4];
      multiply_keys<T, typename Shape::Queries, typename Shape::Keys>(s, queries, warp * 16, stage);
      multiply_keys<T, typename Shape::Douts, typename Shape::Values>(ds, douts, warp * 16, stage + Shape::Keys::bytes);
      const KeyRange visible[2] = {given[0].exists ? source.visible(index, rows[0].query) : KeyRange{0, 0},
                                   given[1].exists ? source.visible(index, rows[1].query) : KeyRange{0, 0}};
#pragma unroll
      for (int n = 0; n < Shape::keys / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int key = n * 8 + lane % 4 * 2 + i % 2;
          const bool seen = key >= visible[i / 2].begin && key < visible[i / 2].end;
          const GradientRow& row = given[i / 2];
          ds[n][i] = ScoreGradient(s[n][i], a.scale_log2, row.sum_log2, row.weight * ds[n][i], row.delta, seen).ds;
        }
      multiply_values<T, typename Shape::Keys>(dq, ds, stage);
    }
    __syncthreads();
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (!given[half].exists) continue;
    float* const row = a.dq + rows[half].head_row * a.d_qk;
#pragma unroll
    for (int n = 0; n < Shape::d_qk / 8; ++n) {
      const int column = n * 8 + lane % 4 * 2;
      if (column < a.d_qk) add2(row + column, dq[n][2 * half] * a.scale, dq[n][2 * half + 1] * a.scale);
    }
  }
}

}  // namespace cpnsa::cuda::sm80
