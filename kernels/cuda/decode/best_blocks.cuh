#pragma once

// The best blocks of a row, by score, ties to the lower block; NaN ranks below every number.

#include <cmath>
#include <cstdint>

#include "kernels/cuda/common/selection_rule.cuh"

namespace cpnsa::cuda::decode {

/// A block and its score, ordered as an unsigned number; 0: none. Scores are sums of exponentials, so not negative.
struct RankedBlock {
  __device__ static std::uint64_t pack(float score, int block) {
    const std::uint32_t key = isnan(score) ? 0u : __float_as_uint(score) + 1u;
    return static_cast<std::uint64_t>(key) << 32 | (0xffffffffu - static_cast<std::uint32_t>(block));
  }
  __device__ static int block(std::uint64_t ranked) {
    return static_cast<int>(0xffffffffu - static_cast<std::uint32_t>(ranked));
  }
  __device__ static float score(std::uint64_t ranked) {
    const auto key = static_cast<std::uint32_t>(ranked >> 32);
    return key == 0 ? NAN : __int_as_float(static_cast<int>(key - 1));
  }
};

/// The greatest of a warp's numbers.
__device__ __forceinline__ std::uint64_t warp_maximum(std::uint64_t own) {
  const auto high = static_cast<std::uint32_t>(own >> 32);
  const std::uint32_t top = __reduce_max_sync(0xffffffffu, high);
  const std::uint32_t low = __reduce_max_sync(0xffffffffu, high == top ? static_cast<std::uint32_t>(own) : 0u);
  return static_cast<std::uint64_t>(top) << 32 | low;
}

/// The best `count` of candidates [0, size), descending, written to `best`, 0 where there are fewer. The candidates are
/// overwritten. By one warp; numbers other than 0 differ.
__device__ __forceinline__ void take_best(std::uint64_t* candidates, int size, std::uint64_t* best, int count) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto greatest_own = [&] {
    std::uint64_t own = 0;
    for (int i = lane; i < size; i += 32) own = candidates[i] > own ? candidates[i] : own;
    return own;
  };
  std::uint64_t own = greatest_own();
  for (int i = 0; i < count; ++i) {
    const std::uint64_t top = warp_maximum(own);
    if (lane == 0) best[i] = top;
    if (top != 0 && own == top) {
      for (int at = lane; at < size; at += 32)
        if (candidates[at] == top) candidates[at] = 0;
      own = greatest_own();
    }
  }
  __syncwarp();
}

/// Writes the n selected blocks, ascending, of a row that chooses: the forced ones and `best`, in any order. `end` is
/// that of the candidates. By `threads` threads, of which this is number `thread`.
__device__ __forceinline__ void write_selected(const SelectionRule& rule, int end, const std::uint64_t* best,
                                               std::int32_t* selected, int thread, int threads) {
  const int count = rule.num_scored(), init = rule.init_blocks;
  for (int i = thread; i < rule.select_count; i += threads) {
    if (i < init) {
      selected[i] = i;
    } else if (i < init + count) {
      const int own = RankedBlock::block(best[i - init]);
      int at = init;
      for (int other = 0; other < count; ++other) at += RankedBlock::block(best[other]) < own;
      selected[at] = own;
    } else {
      selected[i] = end + i - init - count;
    }
  }
}

}  // namespace cpnsa::cuda::decode
