#pragma once

// Stages of keys and values for warps that each want a few of a list of blocks: a block comes into whichever stage is
// free, those that chose it free its stage, and nobody waits for a block of others.

#include "kernels/cuda/ptx_sm90.cuh"
#include "kernels/cuda/selected_union.cuh"
#include "kernels/cuda/stage_functions.hpp"

namespace cpnsa::cuda::sm90 {

/// What takes a block's location's place in the list once the block is on its way: the stage that it comes into, and
/// the parity of that stage's phase. Less than any location, of which there are 2^24 below zero.
class Arrival {
 public:
  __device__ Arrival(int stage, int parity) : word_(first - stage * 2 - parity) {}

  /// Waits until the loading thread has put it there. Who asked often would take shared memory's time from the others.
  __device__ static Arrival of(const BlockLocation* location) {
    Arrival arrival(0, 0);
    while ((arrival.word_ = *static_cast<const volatile BlockLocation*>(location)) > first) __nanosleep(100);
    return arrival;
  }
  __device__ void tell(BlockLocation* location) const { *static_cast<volatile BlockLocation*>(location) = word_; }

  __device__ int stage() const { return (first - word_) / 2; }
  __device__ int parity() const { return (first - word_) % 2; }

 private:
  static constexpr BlockLocation first = -(1 << 30);
  BlockLocation word_;
};

/// The loading thread's knowledge of Shape::stages stages, all free at first. shared.free(stage) is an mbarrier of
/// Shape::queries arrivals.
template <class Shape>
class FreeStages {
 public:
  /// Waits for one. Few stages are taken in turn, which was measured to be faster.
  template <class Shared>
  __device__ Arrival take(const Shared& shared) {
    if constexpr (Shape::stages < 4)
      ptx::barrier_wait(shared.free(next_), (parities_ >> next_ & 1) ^ 1);
    else
      while (!ptx::barrier_passed(shared.free(next_), (parities_ >> next_ & 1) ^ 1))
        next_ = (next_ + 1) % Shape::stages;
    const Arrival taken(next_, parities_ >> next_ & 1);
    parities_ ^= 1u << next_;
    next_ = (next_ + 1) % Shape::stages;
    return taken;
  }

  /// The block is on its way: tells the queries of `choosers`, who look for it in `location`.
  template <class Shared>
  __device__ static void announce(const Arrival& arrival, unsigned choosers, BlockLocation* location,
                                  const Shared& shared) {
    arrival.tell(location);
    const int others = Shape::queries - __popc(choosers);
    if (others > 0) ptx::barrier_arrive(shared.free(arrival.stage()), others);
  }

 private:
  int next_ = 0;
  unsigned parities_ = 0;  ///< of the phase that a stage's next block fills, a bit a stage
};

/// A warp's walk over the blocks that its query chose: attend(block, stage) once keys and values are there. Frees the
/// stage after it. shared.ready(stage) is the mbarrier of the copies.
template <class Shared, class Attend>
__device__ __forceinline__ void for_each_chosen(const SelectedUnion& list, const BlockLocation* locations, int query,
                                                const Shared& shared, Attend&& attend) {
  const int count = *list.count;
#pragma unroll 1
  for (int first = 0; first < count; first += 32) {
    const int own = first + threadIdx.x % 32;
    unsigned chosen = __ballot_sync(0xffffffffu, own < count && (list.queries[own] >> query & 1));
#pragma unroll 1
    for (; chosen != 0; chosen &= chosen - 1) {
      const int index = first + __ffs(static_cast<int>(chosen)) - 1;
      const Arrival arrival = Arrival::of(&locations[index]);
      const int stage = arrival.stage();
      ptx::barrier_wait(shared.ready(stage), arrival.parity());
      attend(list.blocks[index], stage);
      __syncwarp();
      if (threadIdx.x % 32 == 0) ptx::barrier_arrive(shared.free(stage));
    }
  }
}

}  // namespace cpnsa::cuda::sm90
