#pragma once

// Stages of keys, and of values, for warps that each want a few of a list of blocks: a block comes into whichever stage
// is free, those that chose it free its stage, and nobody waits for a block of others. Keys and values have stages and
// loading threads of their own: a block's keys make room as soon as its scores are done, while its values still come.

#include "kernels/cuda/sm90/selection/block_maps.cuh"
#include "kernels/cuda/sm90/selection/selected_work.cuh"

namespace cpnsa::cuda::sm90 {

/// The stage that a block comes into and the parity of that stage's phase, as the thread that loads tells it to those
/// who look for it.
class Arrival {
 public:
  __device__ Arrival(int stage, int parity) : word_(static_cast<unsigned>(stage * 2 + parity + 2)) {}

  __device__ Arrival() : word_(none) {}
  /// What is told now. Who waits should look seldom: a look takes shared memory's time from the others.
  __device__ explicit Arrival(const ArrivalWord* word) : word_(*static_cast<const volatile ArrivalWord*>(word)) {}
  __device__ void publish(ArrivalWord* word) const {
    *static_cast<volatile ArrivalWord*>(word) = static_cast<ArrivalWord>(word_);
  }

  __device__ bool known() const { return word_ != none; }
  __device__ int stage() const { return static_cast<int>(word_ / 2 - 1); }
  __device__ int parity() const { return static_cast<int>(word_ % 2); }

 private:
  static constexpr unsigned none = 0;
  unsigned word_;
};

/// `Stages` tiles of the keys, or the values, of 64 tokens, `Dim` channels each, with two mbarriers a stage: of its
/// copies, and of `Users` warps.
template <int Stages, int Dim, int Users>
struct StagePool {
  static constexpr int stages = Stages;
  static constexpr int tile_bytes = 64 * Dim * 2;
  static constexpr int bytes = stages * tile_bytes;
  static constexpr int barriers = 2 * stages;

  std::uint32_t tiles;  ///< shared-memory addresses
  std::uint32_t first_barrier;

  __device__ std::uint32_t tile(int stage) const { return tiles + stage * tile_bytes; }
  __device__ std::uint32_t ready(int stage) const { return first_barrier + stage * 8; }
  __device__ std::uint32_t free(int stage) const { return ready(stages) + stage * 8; }

  __device__ void initialise() const {
    for (int stage = 0; stage < stages; ++stage) {
      ptx::mbarrier_init(ready(stage), 1);
      ptx::mbarrier_init(free(stage), Users);
    }
  }

  /// The stage of the block that `word` tells of, once all of it is there. `seen`: what an earlier look at it told.
  __device__ __forceinline__ int wait_for(const ArrivalWord* word, Arrival seen = Arrival()) const {
    if (!seen.known()) seen = Arrival(word);
    while (!seen.known()) {
      __nanosleep(100);
      seen = Arrival(word);
    }
    ptx::mbarrier_wait(ready(seen.stage()), seen.parity());
    return seen.stage();
  }

  /// The warp is done with it.
  __device__ __forceinline__ void release(int stage) const {
    __syncwarp();
    if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(free(stage));
  }

  /// One thread: brings the blocks of every union, in the unions' order, from `maps`, of the rank's own rows and of the
  /// pool. `kind` says which of the lists' arrivals tell of them.
  template <class Shape, class Shared>
  __device__ __forceinline__ void fill(const CUtensorMap (&maps)[2], const UnionBuffers& buffers, ArrivalsOf kind,
                                       const Shared& shared) const {
    RingPosition<Shape::lists> lists;
    int next = 0;
    unsigned parities = 0;  // of the phase that a stage's next block fills, a bit a stage
#pragma unroll 1
    for (;; lists.advance()) {
      ptx::mbarrier_wait(shared.list_ready(lists.stage), lists.phase);
      const SelectedItem& item = buffers.item(lists.stage);
      if (!item.given) return;
      const int group = item.group;
      const SelectedUnion list = buffers.list(Shape::lists, lists.stage);
      const BlockLocation* const locations = buffers.locations(lists.stage);
      ArrivalWord* const arrivals = buffers.arrivals(kind, lists.stage);
      const int count = *list.count;
#pragma unroll 1
      for (int index = 0; index < count; ++index) {
        const BlockLocation at = locations[index];
        const int map = at >= 0 ? 0 : 1, c1 = at >= 0 ? group : 0, c2 = at >= 0 ? at : -1 - at;
        const int others = Users - __popc(static_cast<unsigned>(list.queries[index]));
        while (!ptx::mbarrier_test_wait(free(next), (parities >> next & 1) ^ 1))
          if constexpr (stages >= 4) next = (next + 1) % stages;  // fewer in turn, which was measured to be faster
        ptx::mbarrier_arrive_expect_tx(ready(next), tile_bytes);
        for (int panel = 0; panel < Dim / 64; ++panel)
          ptx::tma_load(tile(next) + panel * (64 * 128), &maps[map], ready(next), panel * 64, c1, c2);
        Arrival(next, parities >> next & 1).publish(&arrivals[index]);
        if (others > 0) ptx::mbarrier_arrive(free(next), others);
        parities ^= 1u << next;
        next = (next + 1) % stages;
      }
      ptx::mbarrier_arrive(shared.list_free(lists.stage));
    }
  }
};

/// A warp's walk over the blocks that its query chose: attend(index in the list, that of the next one). The latter is
/// -1 where it is not known yet.
template <class Attend>
__device__ __forceinline__ void for_each_chosen(const SelectedUnion& list, int query, Attend&& attend) {
  const auto lowest = [](unsigned bits) { return __ffs(static_cast<int>(bits)) - 1; };
  const int count = *list.count;
#pragma unroll 1
  for (int first = 0; first < count; first += 32) {
    const int own = first + threadIdx.x % 32;
    unsigned chosen = __ballot_sync(0xffffffffu, own < count && (list.queries[own] >> query & 1));
#pragma unroll 1
    for (; chosen != 0; chosen &= chosen - 1) {
      const unsigned rest = chosen & (chosen - 1);
      attend(first + lowest(chosen), rest != 0 ? first + lowest(rest) : -1);
    }
  }
}

}  // namespace cpnsa::cuda::sm90
