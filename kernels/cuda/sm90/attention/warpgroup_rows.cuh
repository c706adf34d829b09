#pragma once

// The work of a warp on its 16 rows of a warpgroup's accumulators: masks, operands, output. Of each four sums the
// first two are of row lane / 4, the others of eight rows further on, as mma.sync has them (warp_rows.cuh).

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/common/packs.cuh"
#include "kernels/cuda/common/problem.cuh"
#include "kernels/cuda/common/warp_rows.cuh"
#include "kernels/cuda/ptx/sm90.cuh"
#include "kernels/cuda/sm90/head_rows.cuh"

namespace cpnsa::cuda::sm90 {

/// The keys that a warp's 16 rows see. Rows of several queries have theirs in shared memory, because registers are
/// scarce in the loop over key tiles.
template <class Rows>
class VisibleKeys {
 public:
  static constexpr int num_ranges = Rows::has_padding ? 16 : 1;
  using Ranges = KeyRange[num_ranges];

  /// For the warp's rows of the tile's `group`-th group of 64. Later queries see no earlier keys, and keys as late.
  template <class Walk>
  __device__ __forceinline__ VisibleKeys(Ranges& ranges, const Walk& walk, const Rows& rows, int group)
      : ranges_(ranges) {
    const int first = group * rows.queries(), row = static_cast<int>(threadIdx.x) / 32 % 4 * 16;
    if constexpr (Rows::has_padding) {
      const int lane = static_cast<int>(threadIdx.x) % 32;
      __syncwarp();  // the last ranges have been read
      if (lane < num_ranges) ranges_[lane] = walk.visible(first + rows.query(row + lane));
      __syncwarp();
    } else {
      static_assert(Rows::heads() % 16 == 0);
      range_ = walk.visible(first + rows.query(row));
    }
  }

  /// The keys that all rows see.
  __device__ __forceinline__ KeyRange of_all() const {
    if constexpr (Rows::has_padding) return {ranges_[num_ranges - 1].begin, ranges_[0].end};
    return range_;
  }
  /// Sets the scores of the tile's keys, from `first` on, that their rows do not see to `masked`.
  template <int Values>
  __device__ __forceinline__ void mask(float (&s)[Values], int first, float masked) const {
    const int column = threadIdx.x % 4 * 2, row = static_cast<int>(threadIdx.x) % 32 / 4;
    KeyRange of_rows[2] = {range_, range_};
    if constexpr (Rows::has_padding) of_rows[0] = ranges_[row], of_rows[1] = ranges_[row + 8];
#pragma unroll
    for (int i = 0; i < Values; ++i) {
      const int key = first + i / 4 * 8 + column + i % 2;
      const KeyRange range = of_rows[i / 2 % 2];
      if (key < range.begin || key >= range.end) s[i] = masked;
    }
  }

 private:
  Ranges& ranges_;
  KeyRange range_;
};

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
/// are neighbours. `thread`: threadIdx.x, or the same hidden from the optimizer (ptx::opaque()).
template <class T, int Values, class BeginRow, class Store>
__device__ __forceinline__ void for_each_pack(const float (&o)[Values], const SoftmaxRows& state, BeginRow&& begin_row,
                                              Store&& store, unsigned thread = threadIdx.x) {
  const int lane = thread % 32, quarter = lane % 4;
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

/// Writes those of a warp's 16 rows for which out_row(row) is not null.
template <class T, int Values, class OutRow>
__device__ __forceinline__ void write_output(const float (&o)[Values], const SoftmaxRows& state, OutRow&& out_row,
                                             int d_v) requires std::is_invocable_v<OutRow, int> {
  T* out = nullptr;
  for_each_pack<T>(
      o, state, [&](int row) { out = out_row(row); },
      [&](int, int quarter, int group, const LayerPack<T>& values) {
        const int pack = group * 4 + quarter;
        if (out && pack * pack_items < d_v) store_pack(out, pack, values);
      });
}

}  // namespace cpnsa::cuda::sm90
