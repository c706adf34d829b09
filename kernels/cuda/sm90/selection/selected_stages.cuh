#pragma once

// Pools of stages for the keys, and for the values, of a list of blocks of which each warp wants a few. A block is
// loaded into any free stage; the warps that chose it free the stage, and no warp waits for a block that it did not
// choose. Keys and values have stages and loading threads of their own: the keys of a block make room as soon as its
// scores are done, while its values are still being loaded.

#include "kernels/cuda/sm90/selection/block_maps.cuh"
#include "kernels/cuda/sm90/selection/selected_work.cuh"

namespace cpnsa::cuda::sm90 {

/// The stage that a block is loaded into and the parity of that stage's phase, as the loading thread publishes it to
/// the consumers.
class Arrival {
 public:
  __device__ Arrival(int stage, int parity) : word_(static_cast<unsigned>(stage * 2 + parity + 2)) {}

  __device__ Arrival() : word_(none) {}
  /// The published value. Polling should be rare, because each read takes shared-memory bandwidth from other warps.
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

/// `Stages` tiles of keys, or of values: 64 tokens, `Dim` channels each. `Users` warps release a stage.
template <class T, int Stages, int Dim, int Users>
struct StagePool {
  static constexpr int stages = Stages;
  using Memory = PanelTile<T, tokens_per_block, Dim>;
  static constexpr int tile_bytes = sizeof(Memory);

  std::uint32_t tiles;     ///< addresses in shared memory
  std::uint32_t barriers;  ///< `full` of every stage, then `empty` of every stage

  __device__ std::uint32_t tile(int stage) const { return tiles + stage * tile_bytes; }
  __device__ std::uint32_t full(int stage) const { return barriers + stage * static_cast<int>(sizeof(Mbarrier)); }
  __device__ std::uint32_t empty(int stage) const { return full(stages) + stage * static_cast<int>(sizeof(Mbarrier)); }

  __device__ void initialise() const {
    for (int stage = 0; stage < stages; ++stage) {
      ptx::mbarrier_init(full(stage), 1);
      ptx::mbarrier_init(empty(stage), Users);
    }
  }

  /// Returns the stage of the block whose arrival `word` publishes, once all of it is loaded. `seen`: its value, as far
  /// as it was read before.
  __device__ __forceinline__ int wait_for(const ArrivalWord* word, Arrival seen = Arrival()) const {
    if (!seen.known()) seen = Arrival(word);
    while (!seen.known()) {
      __nanosleep(100);
      seen = Arrival(word);
    }
    ptx::mbarrier_wait(full(seen.stage()), seen.parity());
    return seen.stage();
  }

  /// The warp is done with the stage.
  __device__ __forceinline__ void release(int stage) const {
    __syncwarp();
    if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(empty(stage));
  }

  /// The loading thread: loads the blocks of every union, in the order of the unions, from `maps` of the rank's own
  /// rows and of the pool, and publishes them in the lists' arrivals of this `kind`.
  template <class Shape, class Shared>
  __device__ __forceinline__ void producer_loop(const CUtensorMap (&maps)[2], const UnionBuffers& buffers,
                                                ArrivalsOf kind, const Shared& smem) const {
    RingPosition<Shape::lists> lists;
    int next = 0;
    unsigned parities = 0;  // bit per stage: parity of the phase that its next block completes
#pragma unroll 1
    for (;; lists.advance()) {
      ptx::mbarrier_wait(smem.list_full(lists.stage), lists.phase);
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
        while (!ptx::mbarrier_test_wait(empty(next), (parities >> next & 1) ^ 1))
          if constexpr (stages >= 4)
            next = (next + 1) % stages;  // with fewer stages, taking them in turn was measured to be faster
        ptx::mbarrier_arrive_expect_tx(full(next), tile_bytes);
        for (int panel = 0; panel < Memory::num_panels; ++panel)
          ptx::tma_load(tile(next) + panel * Memory::panel_bytes, &maps[map], full(next), panel * panel_channels, c1,
                        c2);
        Arrival(next, parities >> next & 1).publish(&arrivals[index]);
        if (others > 0) ptx::mbarrier_arrive(empty(next), others);
        parities ^= 1u << next;
        next = (next + 1) % stages;
      }
      ptx::mbarrier_arrive(smem.list_empty(lists.stage));
    }
  }
};

/// Calls attend(index in the list, index of the next) for the blocks that the warp's query chose; the next is -1 where
/// it is not known yet.
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
