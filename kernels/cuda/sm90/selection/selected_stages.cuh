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

/// The units that chose an entry of a tile of 64 keys.
template <class Tiling>
__device__ __forceinline__ auto tile_mask(const Tiling& tiling, const typename Tiling::Union& list, int index) {
  if constexpr (!Tiling::Rows::has_padding) {
    return list.mask(index);
  } else {
    unsigned mask = 0;
    const int first = index * tiling.entries_per_tile(), end = min(first + tiling.entries_per_tile(), *list.count);
    for (int entry = first; entry < end; ++entry) mask |= list.mask(entry);
    return mask;
  }
}

/// Returns the entries of a tile that a unit chose, a bit each.
template <class Tiling>
__device__ __forceinline__ unsigned chosen_entries(const Tiling& tiling, const typename Tiling::Union& list, int index,
                                                   int unit) {
  if (tiling.entries_per_tile() == 1) return 1;
  unsigned chosen = 0;
  const int first = index * tiling.entries_per_tile(), count = *list.count;
  for (int part = 0; part < tiling.entries_per_tile(); ++part)
    if (first + part < count) chosen |= (list.mask(first + part) >> unit & 1) << part;
  return chosen;
}

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
  template <class Shape, class Tiling, class Shared>
  __device__ __forceinline__ void producer_loop(const Tiling& tiling, const CUtensorMap (&maps)[2],
                                                const UnionBuffers<Shape::heads_per_group>& buffers, ArrivalsOf kind,
                                                const Shared& smem) const {
    RingPosition<Shape::lists> lists;
    int next = 0;
    unsigned parities = 0;  // bit per stage: parity of the phase that its next block completes
#pragma unroll 1
    for (;; lists.advance()) {
      ptx::mbarrier_wait(smem.list_full(lists.stage), lists.phase);
      const SelectedItem& item = buffers.item(lists.stage);
      if (!item.given) return;
      const int group = item.group;
      const auto list = buffers.list(Shape::lists, lists.stage);
      const BlockLocation* const locations = buffers.locations(Shape::lists, lists.stage);
      ArrivalWord* const arrivals = buffers.arrivals(kind, lists.stage);
      const int count = *list.count, tiles = tiling.tiles(count);
#pragma unroll 1
      for (int index = 0; index < tiles; ++index) {
        const int others =
            Users - tiling.rows().parts() * __popc(static_cast<unsigned>(tile_mask(tiling, list, index)));
        while (!ptx::mbarrier_test_wait(empty(next), (parities >> next & 1) ^ 1))
          if constexpr (stages >= 4)
            next = (next + 1) % stages;  // with fewer stages, taking them in turn was measured to be faster
        ptx::mbarrier_arrive_expect_tx(full(next), tile_bytes);
        for (int part = 0; part < tiling.entries_per_tile(); ++part) {
          // The last tile of a union may lack entries: it is filled, because values are multiplied by zeros.
          const BlockLocation at = locations[min(index * tiling.entries_per_tile() + part, count - 1)];
          const int map = at >= 0 ? 0 : 1, in_pool = -1 - at;
          const int c1 = at >= 0 ? group : in_pool % tiling.entries_per_block() * tokens_per_block,
                    c2 = at >= 0 ? at : in_pool / tiling.entries_per_block();
          const std::uint32_t to = tile(next) + part * tiling.keys_per_entry() * swizzle_bytes;
          for (int panel = 0; panel < Memory::num_panels; ++panel)
            ptx::tma_load(to + panel * Memory::panel_bytes, &maps[map], full(next), panel * panel_channels, c1, c2);
        }
        Arrival(next, parities >> next & 1).publish(&arrivals[index]);
        if (others > 0) ptx::mbarrier_arrive(empty(next), others);
        parities ^= 1u << next;
        next = (next + 1) % stages;
      }
      ptx::mbarrier_arrive(smem.list_empty(lists.stage));
    }
  }
};

/// Calls attend(index of a tile, index of the next) for the tiles of a union, list(), that the warp's queries chose;
/// the next is -1 where it is not known yet.
template <class Tiling, class List, class Attend>
__device__ __forceinline__ void for_each_chosen(const Tiling& tiling, List&& list, int unit, Attend&& attend) {
  const auto lowest = [](unsigned bits) { return __ffs(static_cast<int>(bits)) - 1; };
  const int count = tiling.tiles(*list().count);
#pragma unroll 1
  for (int first = 0; first < count; first += 32) {
    const int own = first + threadIdx.x % 32;
    unsigned chosen = __ballot_sync(0xffffffffu, own < count && (tile_mask(tiling, list(), own) >> unit & 1));
#pragma unroll 1
    for (; chosen != 0; chosen &= chosen - 1) {
      const unsigned rest = chosen & (chosen - 1);
      attend(first + lowest(chosen), rest != 0 ? first + lowest(rest) : -1);
    }
  }
}

/// The keys of a tile that a lane's two rows see, those of their query.
struct RowKeys {
  unsigned long long seen[2];  ///< bit per key

  /// Masks scores of the keys from `first` on, 0 or 32.
  template <int Columns>
  __device__ __forceinline__ void mask(float (&s)[Columns][4], int first, float masked) const {
    static_assert(Columns == 8 || Columns == 4);
    constexpr unsigned long long all = Columns == 8 ? ~0ull : 0xffffffffull;
    const unsigned long long own[2] = {seen[0] >> first & all, seen[1] >> first & all};
    if (!__any_sync(0xffffffffu, own[0] != all || own[1] != all)) return;
    const bool partly = (own[0] != all && own[0] != 0) || (own[1] != all && own[1] != 0);
    if (__any_sync(0xffffffffu, partly)) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const unsigned long long of_lane = own[half] >> (threadIdx.x % 4 * 2);
#pragma unroll
        for (int n = 0; n < Columns; ++n)
#pragma unroll
          for (int i = 0; i < 2; ++i)
            if (!(of_lane >> (n * 8 + i) & 1)) s[n][2 * half + i] = masked;
      }
    } else {
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int n = 0; n < Columns; ++n)
#pragma unroll
          for (int i = 0; i < 2; ++i) s[n][2 * half + i] = own[half] == 0 ? masked : s[n][2 * half + i];
    }
  }
};

/// Walks the lists of the queries of a warp together, in ascending order of entries; lane i has the list of the warp's
/// query i.
class ChosenEntries {
 public:
  template <class Work>
  __device__ ChosenEntries(const Work& a, const SelectedItem& item, const WarpRows<SelectedTiling<any_heads>>& rows)
      : next_(0), entry_(none) {
    const int lane = static_cast<int>(threadIdx.x) % 32, query = rows.query + lane;
    queries_and_left_ = a.tiling.rows().query(lane / 4) | a.tiling.rows().query(lane / 4 + 8) << 4;
    if (lane >= a.tiling.rows().queries() || query >= item.tile.rows) return;
    next_ = static_cast<unsigned>(((item.tile.row + query) * a.problem.num_kv_heads + item.group) * a.select_count);
    queries_and_left_ |= a.select_count << 8;
    read(a);
  }

  /// The keys of the next tile that the lane's rows see. `entries`: those of the tile's entries that the warp's queries
  /// chose, a bit each. `position`: of the warp's first query.
  template <class Work>
  __device__ __forceinline__ RowKeys next(const Work& a, unsigned entries, int position) {
    const int per_entry = a.tiling.keys_per_entry();
    RowKeys keys{};
#pragma unroll 1
    for (int part = 0; entries != 0; ++part, entries >>= 1) {
      if (!(entries & 1)) continue;
      const int entry = __reduce_min_sync(0xffffffffu, entry_);
      const unsigned choosing = __ballot_sync(0xffffffffu, entry_ == entry);
      if (entry_ == entry) advance(a, position + static_cast<int>(threadIdx.x) % 32);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int query = queries_and_left_ >> 4 * half & 0xf;
        if (!(choosing >> query & 1)) continue;
        const int visible = min(per_entry, position + query + 1 - entry * per_entry);
        keys.seen[half] |= (~0ull >> (64 - visible)) << (part * per_entry);
      }
    }
    return keys;
  }

 private:
  static constexpr int none = 0x7fffffff;

  template <class Work>
  __device__ __forceinline__ void read(const Work& a) {
    const bool is_left = queries_and_left_ >= 1 << 8;
    const int block = is_left ? a.selected[next_] : -1;
    entry_ = block < 0 ? none : block * a.tiling.entries_per_block();
    ++next_;
    if (is_left) queries_and_left_ -= 1 << 8;
  }
  template <class Work>
  __device__ __forceinline__ void advance(const Work& a, int position) {
    if (a.tiling.entries_per_block() > 1 && (entry_ + 1) % a.tiling.entries_per_block() != 0) {
      ++entry_;
      if (entry_ * tokens_per_block > position) entry_ = none;  // the block of the query itself, its last
    } else {
      read(a);
    }
  }

  unsigned next_;         ///< index of the next block in `selected`: 32 bits, because registers are short
  int entry_;             ///< of the last block that was read
  int queries_and_left_;  ///< of the lane's rows among the warp's, 4 bits each; then the number of blocks not read yet
};

}  // namespace cpnsa::cuda::sm90
