#pragma once

// The work of persistent thread blocks. Items are handed out one by one, so that a block that starts late, because its
// multiprocessor was busy, gets fewer.

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/common/check.hpp"
#include "kernels/cuda/common/gpu.hpp"
#include "kernels/cuda/schedule/segment_schedule.hpp"

namespace cpnsa::cuda::sm90 {

/// A work item, as the producer publishes it to the consumers of its thread block.
struct alignas(16) Work {
  QueryTile tile;
  int group;   ///< KV head, or slice of the query heads of one (head_rows.cuh)
  bool given;  ///< false: there is no item left
};

/// Items: query tiles times KV heads, or slices of their query heads.
struct WorkList {
  int tiles;
  int num_kv_heads;   ///< or slices
  unsigned* tickets;  ///< number of items handed out beyond each block's first; null where items are dealt out in turn

  __device__ int count() const { return tiles * num_kv_heads; }
  /// A block's first item; a grid has no more blocks than there are items.
  __device__ int first() const { return static_cast<int>(blockIdx.x); }
  /// The next item; count() or more where there is none.
  __device__ int next() const { return static_cast<int>(gridDim.x + atomicAdd(tickets, 1u)); }
};

/// The query tile of an item: the last tiles, which see most keys, come first, each for all groups.
__device__ __forceinline__ int tile_of(const WorkList& work, int item) {
  return work.tiles - 1 - item / work.num_kv_heads;
}

/// A launch of persistent blocks.
struct PersistentWork {
  WorkList list;
  int blocks;
};

/// Zeroes the tickets, which are in the stage's scratch memory.
inline PersistentWork persistent_work(const OpContext& a, std::int64_t tiles, std::int64_t groups, const Gpu& gpu,
                                      cudaStream_t stream) {
  check(cudaMemsetAsync(a.scratch, 0, sizeof(unsigned), stream), "cudaMemsetAsync");
  return {{static_cast<int>(tiles), static_cast<int>(groups), static_cast<unsigned*>(a.scratch)},
          static_cast<int>(std::min<std::int64_t>(gpu.multiprocessors, tiles * groups))};
}

}  // namespace cpnsa::cuda::sm90
