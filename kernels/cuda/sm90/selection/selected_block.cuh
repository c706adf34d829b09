#pragma once

// The shared memory of a thread block of Hopper's selected attention, or of its dQ, and the warps that are not
// consumers: one thread loads keys, one loads values, two warps build unions.
//
// A Shape has `warps` that consume; `consumers`, `builders` and all `threads`; `lists`, the number of block lists, of
// which one is walked while another is built; `Queries`, `Keys` and `Values`, an OwnQueries and StagePools.

#include "kernels/cuda/sm90/selection/selected_stages.cuh"

namespace cpnsa::cuda::sm90 {

/// The 16 rows of q of each of `Warps` warps. A warp loads its next rows when it is done with the last.
template <class T, int Warps, int Dqk>
struct OwnQueries {
  static constexpr int warps = Warps;
  using Tile = SwizzledTile<16, Dqk>;    ///< as warps read it
  using Memory = PanelTile<T, 16, Dqk>;  ///< as it lies in shared memory
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

  /// `queries`: a map of boxes of the warp's heads in its queries; rows beyond the tensor read as zeros.
  template <class Tiling>
  __device__ __forceinline__ void prefetch(const CUtensorMap& queries, const Tiling& tiling,
                                           const SelectedItem& item) const {
    __syncwarp();  // all lanes have read the last rows
    if (threadIdx.x % 32 != 0) return;
    const WarpRows own(tiling, item.group);
    ptx::mbarrier_arrive_expect_tx(full(), tiling.rows().num_rows() * Memory::num_panels * swizzle_bytes);
    for (int panel = 0; panel < Memory::num_panels; ++panel)
      ptx::tma_load(tile() + panel * Memory::panel_bytes, &queries, full(), panel * panel_channels,
                    tiling.rows().first_head(own.slice), static_cast<int>(item.tile.row) + own.query);
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
  __device__ UnionBuffers<Shape::heads_per_group> union_buffers(int words, int capacity) const {
    return {reinterpret_cast<unsigned char*>(this->layout + 1), words, capacity};
  }

  __device__ void initialise() const {
    queries().initialise();
    keys().initialise();
    values().initialise();
    for (int list = 0; list < Shape::lists; ++list) {
      ptx::mbarrier_init(list_full(list), Shape::builders);
      ptx::mbarrier_init(list_empty(list), Shape::warps + 2);  // the consumers' warps and the loading threads
    }
    ptx::fence_mbarrier_init();
  }
};

/// Dynamic shared memory of a launch: the layout and the unions behind it.
template <class Shape, class Stage>
std::size_t selected_shared_bytes(const Stage& a) {
  const UnionSize size = union_size<Shape>(a);
  return static_cast<std::size_t>(SharedMemory<SelectedLayout<Shape>>::bytes) +
         UnionBuffers<Shape::heads_per_group>::bytes(Shape::lists, size.words, size.capacity);
}

/// Static shared memory of the kernels, at most: what builders exchange, aligned as tiles are.
inline constexpr int selected_static_bytes = tile_alignment;

/// The row of the table whose kernel of the selected branch runs, -1 where none serves: that of the layer's own heads
/// for blocks of 64 tokens, else one of any number of heads; the unions of the rank's documents must fit in shared
/// memory.
template <template <class, int, int, int> class KernelShape, class Stage>
int selected_row(const Stage& a) {
  const Config& config = *a.config;
  if (!serves(config, a.dtype)) return -1;
  const auto fits = [&](int row) {
    bool result = false;
    visit_row<KernelShape>(row, a.dtype, [&]<class Shape>(std::type_identity<Shape>) {
      result = Shape::tile_queries(config) > 0 &&
               selected_shared_bytes<Shape>(a) + selected_static_bytes <= max_shared_bytes;
    });
    return result;
  };
  const int own = index_of(config);
  if (own >= 0 && config.select_block == tokens_per_block && fits(own)) return own;
  const int any = any_heads_row(config);
  if (any < 0 || !SelectedTiling<any_heads>::serves(config) || !fits(any)) return -1;
  // ChosenEntries counts in 32 bits.
  const std::int64_t rows = a.queries ? a.queries->rows : 0;
  return rows * config.num_kv_heads * config.select_count < std::int64_t{1} << 32 ? any : -1;
}

/// Calls function(std::type_identity<Shape>{}) for the row that serves the layer; UnsupportedError when there is none.
template <template <class, int, int, int> class KernelShape, class Stage, class Function>
void visit_selected_shape(const Stage& a, Function&& function) {
  const int row = selected_row<KernelShape>(a);
  if (row < 0) refuse_shape(*a.config);
  visit_row<KernelShape>(row, a.dtype, function);
}

/// The rows of q in boxes of those of a warp.
template <int Heads, class Stage>
TensorLayout warp_rows_layout(const Stage& a) {
  const HeadRows<Heads, 16> rows(static_cast<int>(a.config->heads_per_group()));
  return rows_layout(a.queries->rows, a.config->num_q_heads, a.config->head_dim_qk, rows.queries(), rows.heads());
}

/// Runs the producer warps (those after the first Shape::consumers / 32) until the block's work is done.
template <class Shape, class Problem>
__device__ __forceinline__ void run_producer_warps(const SelectedWork<Problem, Shape::heads_per_group>& work,
                                                   const BlockMaps& maps,
                                                   const UnionBuffers<Shape::heads_per_group>& buffers,
                                                   const SelectedMemory<Shape>& smem) {
  static_assert(Shape::threads == Shape::consumers + 64 + Shape::builders);
  if (threadIdx.x == Shape::consumers)
    smem.keys().template producer_loop<Shape>(work.tiling, maps.keys, buffers, ArrivalsOf::keys, smem);
  else if (threadIdx.x == Shape::consumers + 32)
    smem.values().template producer_loop<Shape>(work.tiling, maps.values, buffers, ArrivalsOf::values, smem);
  else if (threadIdx.x >= Shape::threads - Shape::builders)
    build_unions<Shape>(work, buffers, smem);
}

}  // namespace cpnsa::cuda::sm90
