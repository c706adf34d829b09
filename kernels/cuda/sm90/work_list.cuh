#pragma once

// What persistent thread blocks work on. Items are handed out one by one: a block that starts late, because it finds
// its multiprocessor taken, gets fewer.

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/common/check.hpp"
#include "kernels/cuda/common/gpu.hpp"
#include "kernels/cuda/schedule/segment_schedule.hpp"

namespace cpnsa::cuda::sm90 {

/// An item, as the thread that takes it tells the others of its block.
struct alignas(16) Work {
  QueryTile tile;
  int group;   ///< KV head
  bool given;  ///< false: there is none left
};

/// Items: query tiles times KV heads.
struct WorkList {
  int tiles;
  int num_kv_heads;
  unsigned* tickets;  ///< handed out beyond every block's first item; null where items are dealt out

  __device__ int count() const { return tiles * num_kv_heads; }
  /// A block's first item; a grid has no more blocks than there are items.
  __device__ int first() const { return static_cast<int>(blockIdx.x); }
  /// The next; count() or more where there is none.
  __device__ int next() const { return static_cast<int>(gridDim.x + atomicAdd(tickets, 1u)); }
};

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
