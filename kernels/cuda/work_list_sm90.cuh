#pragma once

// What persistent thread blocks work on. Items are handed out one by one: a block that starts late, because it finds
// its multiprocessor taken, gets fewer.

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/check.hpp"
#include "kernels/cuda/segment_schedule.hpp"
#include "kernels/cuda/sm90.hpp"

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
  int groups;
  int quota;          ///< items that a block takes at most
  unsigned* tickets;  ///< handed out beyond every block's first item

  __device__ int count() const { return tiles * groups; }
  /// A block's first item; a grid has no more blocks than there are items.
  __device__ int first() const { return static_cast<int>(blockIdx.x); }
  /// The next after `taken` items; count() or more where there is none.
  __device__ int next(int taken) const {
    return taken < quota ? static_cast<int>(gridDim.x + atomicAdd(tickets, 1u)) : count();
  }
};

/// A launch of persistent blocks.
struct PersistentWork {
  WorkList list;
  int blocks;
};

/// Zeroes the tickets, which are in the stage's scratch memory. A block is everything that fits on a multiprocessor,
/// and what moves messages are kernels: beside messages a block leaves after a quarter of its share, and they get in.
inline PersistentWork persistent_work(const StageContext& a, std::int64_t tiles, std::int64_t groups,
                                      cudaStream_t stream) {
  check(cudaMemsetAsync(a.scratch, 0, sizeof(unsigned), stream), "cudaMemsetAsync");
  const std::int64_t items = tiles * groups, at_once = std::min<std::int64_t>(multiprocessors(), items);
  std::int64_t quota = items, blocks = at_once;
  if (a.beside_messages) {
    constexpr std::int64_t shares = 4;
    quota = (items + shares * at_once - 1) / (shares * at_once);
    blocks = std::min(items, (items + quota - 1) / quota + at_once);  // some come when all is done
  }
  return {
      {static_cast<int>(tiles), static_cast<int>(groups), static_cast<int>(quota), static_cast<unsigned*>(a.scratch)},
      static_cast<int>(blocks)};
}

}  // namespace cpnsa::cuda::sm90
