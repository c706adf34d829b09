#pragma once

// The shared memory of a thread block of Hopper's selected attention, or of its dQ, and those of its threads that are
// not consumers: one that loads keys, one that loads values, two warps that build unions.
//
// A Shape says `queries` of a tile, a consumer warp each; `consumers`, `builders` and all `threads`; `lists` of blocks,
// of which one is walked while another is built; `Queries`, `Keys` and `Values`, which are OwnQueries and StagePools.

#include "kernels/cuda/sm90/selection/selected_stages.cuh"

namespace cpnsa::cuda::sm90 {

/// A query's `Heads` heads for each of `Warps` warps, which asks for its next query when it is done with the last.
template <int Warps, int Heads, int Dqk>
struct OwnQueries {
  using Tile = SwizzledTile<Heads, Dqk>;
  static constexpr int bytes = Warps * Tile::bytes;
  static constexpr int barriers = Warps;

  std::uint32_t tiles;  ///< shared-memory addresses
  std::uint32_t first_barrier;

  __device__ std::uint32_t tile() const { return tiles + threadIdx.x / 32 * Tile::bytes; }
  __device__ std::uint32_t ready() const { return first_barrier + threadIdx.x / 32 * 8; }
  __device__ void initialise() const {
    for (int warp = 0; warp < Warps; ++warp) ptx::mbarrier_init(first_barrier + warp * 8, 1);
  }

  /// `queries`: a map of boxes of one row's heads of a KV head; rows beyond it read as zeros.
  __device__ __forceinline__ void prefetch(const CUtensorMap& queries, const SelectedItem& item) const {
    __syncwarp();  // all lanes have read the last one
    if (threadIdx.x % 32 != 0) return;
    ptx::mbarrier_arrive_expect_tx(ready(), Tile::bytes);
    for (int panel = 0; panel < Dqk / 64; ++panel)
      ptx::tma_load(tile() + panel * (Heads * 128), &queries, ready(), panel * 64, item.group * Heads,
                    static_cast<int>(item.tile.row) + static_cast<int>(threadIdx.x) / 32);
  }
};

template <class Shape>
struct SelectedShared {
  using Queries = typename Shape::Queries;
  using Keys = typename Shape::Keys;
  using Values = typename Shape::Values;
  static constexpr int tile_bytes = Queries::bytes + Keys::bytes + Values::bytes;
  static constexpr int barriers = Queries::barriers + Keys::barriers + Values::barriers + 2 * Shape::lists;
  static constexpr int bytes = (tile_bytes + barriers * 8 + 15) / 16 * 16;

  std::uint32_t base;

  __device__ Queries queries() const { return {base, barrier(0)}; }
  __device__ Keys keys() const { return {base + Queries::bytes, barrier(Queries::barriers)}; }
  __device__ Values values() const {
    return {base + Queries::bytes + Keys::bytes, barrier(Queries::barriers + Keys::barriers)};
  }
  __device__ std::uint32_t list_ready(int list) const { return barrier(barriers - 2 * Shape::lists + list); }
  __device__ std::uint32_t list_free(int list) const { return barrier(barriers - Shape::lists + list); }

  __device__ void initialise() const {
    queries().initialise();
    keys().initialise();
    values().initialise();
    for (int list = 0; list < Shape::lists; ++list) {
      ptx::mbarrier_init(list_ready(list), Shape::builders);
      ptx::mbarrier_init(list_free(list), Shape::queries + 2);  // the consumers' warps and the loading threads
    }
    ptx::fence_mbarrier_init();
  }

 private:
  __device__ std::uint32_t barrier(int i) const { return base + tile_bytes + i * 8; }
};

/// Tiles, room to align them, the unions and what goes with them.
template <class Shape, class Stage>
std::size_t selected_shared_bytes(const Stage& a) {
  const UnionSize size = union_size<Shape>(a);
  return static_cast<std::size_t>(SelectedShared<Shape>::bytes) + 1024 +
         UnionBuffers::bytes(Shape::lists, size.words, size.capacity);
}

/// What the thread block has but consumers, until the work is done: the warps from Shape::consumers / 32 on.
template <class Shape, class Problem>
__device__ __forceinline__ void run_producer_warps(const SelectedWork<Problem>& work, const BlockMaps& maps,
                                                   const UnionBuffers& buffers, const SelectedShared<Shape>& shared) {
  static_assert(Shape::threads == Shape::consumers + 64 + Shape::builders);
  if (threadIdx.x == Shape::consumers)
    shared.keys().template fill<Shape>(maps.keys, buffers, ArrivalsOf::keys, shared);
  else if (threadIdx.x == Shape::consumers + 32)
    shared.values().template fill<Shape>(maps.values, buffers, ArrivalsOf::values, shared);
  else if (threadIdx.x >= Shape::threads - Shape::builders)
    build_unions<Shape>(work, buffers, shared);
}

}  // namespace cpnsa::cuda::sm90
