#pragma once

// The work of a warp on its 16 rows of a warpgroup's accumulators: masks, operands, output. Of each four sums the
// first two are of row lane / 4, the others of eight rows further on, as mma.sync has them (warp_rows.cuh).

#include <cstdint>

#include "kernels/cuda/common/packs.cuh"
#include "kernels/cuda/common/problem.cuh"
#include "kernels/cuda/common/warp_rows.cuh"
#include "kernels/cuda/ptx/sm90.cuh"

namespace cpnsa::cuda::sm90 {

/// Masks the scores of the tile's keys, from `first` on, that are not in `visible`, a warp's rows alike.
template <int Values>
__device__ __forceinline__ void mask_scores(float (&s)[Values], KeyRange visible, int first) {
  const int column = threadIdx.x % 4 * 2;
#pragma unroll
  for (int i = 0; i < Values; ++i) {
    const int key = first + i / 4 * 8 + column + i % 2;
    if (key < visible.begin || key >= visible.end) s[i] = -INFINITY;
  }
}

/// Scores as the first operand of the next product.
template <class T, int Values>
__device__ __forceinline__ void to_operand(std::uint32_t (&p)[Values / 8][4], const float (&s)[Values]) {
#pragma unroll
  for (int step = 0; step < Values / 8; ++step)
#pragma unroll
    for (int i = 0; i < 4; ++i) p[step][i] = narrow2<T>(s[8 * step + 2 * i], s[8 * step + 2 * i + 1]);
}

/// Calls store(row of 16, quarter, group, values) for a warp's 16 rows of packs, pack group * 4 + quarter of the row,
/// and begin_row(row) before the packs of each: the four lanes of a row exchange pairs so that each has 8 channels that
/// are neighbours.
template <class T, int Values, class BeginRow, class Store>
__device__ __forceinline__ void for_each_pack(const float (&o)[Values], const SoftmaxRows& state, BeginRow&& begin_row,
                                              Store&& store) {
  const int lane = threadIdx.x % 32, quarter = lane % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float factor = state.inverse_sum(half);
    begin_row(lane / 4 + 8 * half);
#pragma unroll
    for (int group = 0; group < Values / 16; ++group) {  // four columns of 8 channels
      // A 4 x 4 transpose: lane q ends with all four pairs of column q.
      std::uint32_t mine[4];
      alignas(16) std::uint32_t theirs[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        mine[i] = narrow2<T>(o[16 * group + 4 * i + 2 * half] * factor, o[16 * group + 4 * i + 2 * half + 1] * factor);
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        const int send = (quarter ^ step);
        const std::uint32_t out_word = send == 0 ? mine[0] : send == 1 ? mine[1] : send == 2 ? mine[2] : mine[3];
        const std::uint32_t in_word = __shfl_xor_sync(0xffffffffu, out_word, step);
        const int from = quarter ^ step;
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (from == i) theirs[i] = in_word;
      }
      store(lane / 4 + 8 * half, quarter, group, reinterpret_cast<const LayerPack<T>&>(theirs));
    }
  }
}

/// Writes a warp's 16 rows.
template <class T, int Values>
__device__ __forceinline__ void write_output(const float (&o)[Values], const SoftmaxRows& state, T* out, int d_v) {
  for_each_pack<T>(
      o, state, [](int) {},
      [&](int row, int quarter, int group, const LayerPack<T>& values) {
        store_pack(out + row * d_v, group * 4 + quarter, values);
      });
}

}  // namespace cpnsa::cuda::sm90
