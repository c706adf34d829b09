#pragma once

// The shared memory of a thread block of Hopper's selected attention, or of its dQ, and the warps that are not
// consumers: one thread loads keys, one loads values, two warps build unions.
//
// A Shape has `queries` per tile, one consumer warp each; `consumers`, `builders` and all `threads`; `lists`, the
// number of block lists, of which one is walked while another is built; `Queries`, `Keys` and `Values`, an OwnQueries
// and StagePools.

#include "kernels/cuda/sm90/selection/selected_stages.cuh"

namespace cpnsa::cuda::sm90 {

/// The query of each of `Warps` warps, with its `Heads` heads. A warp loads its next query when it is done with the
/// last.
template <class T, int Warps, int Heads, int Dqk>
struct OwnQueries {
  static constexpr int warps = Warps;
  using Tile = SwizzledTile<Heads, Dqk>;    ///< as warps read it
  using Memory = PanelTile<T, Heads, Dqk>;  ///< as it lies in shared memory
  static_assert(sizeof(Memory) == Tile::bytes);

  std::uint32_t tiles;  ///< addresses in shared memory
  std::uint32_t full_barriers;

  __device__ std::uint32_t tile() const { return tiles + threadIdx.x / 32 * Tile::bytes; }
  __device__ std::uint32_t full() const {
    return full_barriers + threadIdx.x / 32 * static_cast<int>(sizeof(Mbarrier));
  }
  __device__ void initialise() const {
    for (int warp = 0; warp < Warps; ++warp)
      ptx::mbarrier_init(full_barriers + warp * static_cast<int>(sizeof(Mbarrier)), 1);
  }

  /// `queries`: a map of boxes of the heads of one KV head in one row; rows beyond it read as zeros.
  __device__ __forceinline__ void prefetch(const CUtensorMap& queries, const SelectedItem& item) const {
    __syncwarp();  // all lanes have read the last query
    if (threadIdx.x % 32 != 0) return;
    ptx::mbarrier_arrive_expect_tx(full(), Tile::bytes);
    for (int panel = 0; panel < Memory::num_panels; ++panel)
      ptx::tma_load(tile() + panel * Memory::panel_bytes, &queries, full(), panel * panel_channels, item.group * Heads,
                    static_cast<int>(item.tile.row) + static_cast<int>(threadIdx.x) / 32);
  }
};

/// Followed by UnionBuffers, whose size depends on the documents.
template <class Shape>
struct alignas(16) SelectedLayout {
  typename Shape::Queries::Memory q[Shape::Queries::warps];
  typename Shape::Keys::Memory k[Shape::Keys::stages];
  typename Shape::Values::Memory v[Shape::Values::stages];
  Mbarrier q_full[Shape::Queries::warps];
  Mbarrier k_full[Shape::Keys::stages];
  Mbarrier k_empty[Shape::Keys::stages];
  Mbarrier v_full[Shape::Values::stages];
  Mbarrier v_empty[Shape::Values::stages];
  Mbarrier list_full[Shape::lists];
  Mbarrier list_empty[Shape::lists];
};

template <class Shape>
struct SelectedMemory : SharedMemory<SelectedLayout<Shape>> {
  using Layout = SelectedLayout<Shape>;
  static_assert(offsetof(Layout, k_empty) == offsetof(Layout, k_full) + sizeof(Layout::k_full) &&
                offsetof(Layout, v_empty) ==
                    offsetof(Layout, v_full) + sizeof(Layout::v_full));  // as StagePool reads them

  __device__ typename Shape::Queries queries() const {
    return {this->at(offsetof(Layout, q)), this->at(offsetof(Layout, q_full))};
  }
  __device__ typename Shape::Keys keys() const {
    return {this->at(offsetof(Layout, k)), this->at(offsetof(Layout, k_full))};
  }
  __device__ typename Shape::Values values() const {
    return {this->at(offsetof(Layout, v)), this->at(offsetof(Layout, v_full))};
  }
  __device__ std::uint32_t list_full(int list) const { return this->barrier(offsetof(Layout, list_full), list); }
  __device__ std::uint32_t list_empty(int list) const { return this->barrier(offsetof(Layout, list_empty), list); }

  /// Behind the layout.
  __device__ UnionBuffers union_buffers(int words, int capacity) const {
    return {reinterpret_cast<unsigned char*>(this->layout + 1), words, capacity};
  }

  __device__ void initialise() const {
    queries().initialise();
    keys().initialise();
    values().initialise();
    for (int list = 0; list < Shape::lists; ++list) {
      ptx::mbarrier_init(list_full(list), Shape::builders);
      ptx::mbarrier_init(list_empty(list), Shape::queries + 2);  // the consumers' warps and the loading threads
    }
    ptx::fence_mbarrier_init();
  }
};

/// Dynamic shared memory of a launch: the layout and the unions behind it.
template <class Shape, class Stage>
std::size_t selected_shared_bytes(const Stage& a) {
  const UnionSize size = union_size<Shape>(a);
  return static_cast<std::size_t>(SharedMemory<SelectedLayout<Shape>>::bytes) +
         UnionBuffers::bytes(Shape::lists, size.words, size.capacity);
}

/// Returns whether a thread block's shared memory has room for the unions of the rank's documents.
template <template <class, int, int, int> class KernelShape, class Stage>
bool unions_fit(const Stage& a) {
  bool fits = false;
  visit_shape<KernelShape>(
      a, [&]<class Shape>(std::type_identity<Shape>) { fits = selected_shared_bytes<Shape>(a) <= max_shared_bytes; });
  return fits;
}

/// Runs the producer warps (those after the first Shape::consumers / 32) until the block's work is done.
template <class Shape, class Problem>
__device__ __forceinline__ void run_producer_warps(const SelectedWork<Problem>& work, const BlockMaps& maps,
                                                   const UnionBuffers& buffers, const SelectedMemory<Shape>& smem) {
  static_assert(Shape::threads == Shape::consumers + 64 + Shape::builders);
  if (threadIdx.x == Shape::consumers)
    smem.keys().template producer_loop<Shape>(maps.keys, buffers, ArrivalsOf::keys, smem);
  else if (threadIdx.x == Shape::consumers + 32)
    smem.values().template producer_loop<Shape>(maps.values, buffers, ArrivalsOf::values, smem);
  else if (threadIdx.x >= Shape::threads - Shape::builders)
    build_unions<Shape>(work, buffers, smem);
}

}  // namespace cpnsa::cuda::sm90
