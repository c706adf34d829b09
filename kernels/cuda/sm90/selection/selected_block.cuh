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

/// Static shared memory of the kernels, at most: what builders exchange, aligned as tiles are.
inline constexpr int selected_static_bytes = tile_alignment;

/// The plan of a shape for documents that end at `end_position`: as many queries as have a union that fits in shared
/// memory, at most as many as the warps have rows for; no plan where none fits.
template <class Shape>
SelectedPlan plan_of_shape(const Config& config, std::int64_t end_position) {
  const SelectedTiling<Shape::heads_per_group> tiling(config);
  const std::int64_t entries = (end_position + tiling.keys_per_entry() - 1) / tiling.keys_per_entry(),
                     chosen = config.select_count * tiling.entries_per_block();
  const HeadSplit split(16, static_cast<int>(config.heads_per_group()));
  SelectedPlan plan;
  plan.words = SelectedUnion::words(entries);
  const int full = split.tile_queries(Shape::warps);
  for (plan.queries = full; plan.queries > 0; --plan.queries) {
    plan.capacity = static_cast<int>(std::min(entries, plan.queries * chosen));
    plan.shared_bytes =
        static_cast<std::size_t>(SharedMemory<SelectedLayout<Shape>>::bytes +
                                 UnionBuffers<Shape::heads_per_group>::bytes(Shape::lists, plan.words, plan.capacity));
    if (plan.shared_bytes + selected_static_bytes > max_shared_bytes) continue;
    const int warps = Shape::warps / split.parts;  // that share the queries
    plan.per_warp = (plan.queries + warps - 1) / warps;
    plan.is_full = plan.queries == full;
    break;
  }
  return plan;
}

/// The plan of a launch: on the row of the layer's own heads for blocks of 64 tokens, if tiles need not be smaller for
/// the length of the documents, else on one of any number of heads, whose unions are smaller.
template <template <class, int, int, int> class KernelShape>
SelectedPlan selected_plan(const Config& config, DType dtype, std::int64_t end_position) {
  if (!serves(config, dtype)) return {};
  const auto plan_of_row = [&](int row) {
    SelectedPlan plan;
    visit_row<KernelShape>(
        row, dtype, [&]<class Shape>(std::type_identity<Shape>) { plan = plan_of_shape<Shape>(config, end_position); });
    if (plan.queries > 0) plan.row = row;
    return plan;
  };
  const int own = index_of(config), any = any_heads_row(config);
  if (own >= 0 && config.select_block == tokens_per_block) {
    const SelectedPlan plan = plan_of_row(own);
    if (plan.is_full) return plan;
  }
  return any >= 0 && SelectedTiling<any_heads>::serves(config) ? plan_of_row(any) : SelectedPlan();
}

/// The same for a stage; without queries, for documents of one block.
template <template <class, int, int, int> class KernelShape, class Stage>
SelectedPlan selected_plan(const Stage& a) {
  const std::int64_t end = a.queries ? cuda_schedule(a.queries).end_position() : a.config->select_block;
  const SelectedPlan plan = selected_plan<KernelShape>(*a.config, a.dtype, end);
  // The kernels for any number of heads count rows and selected blocks in 32 bits.
  const std::int64_t rows = a.queries ? a.queries->rows : 0;
  const bool counts =
      rows * std::max(a.config->num_kv_heads * a.config->select_count, a.config->num_q_heads) < std::int64_t{1} << 31;
  return counts || shapes[std::max(plan.row, 0)].heads_per_group != any_heads ? plan : SelectedPlan();
}

/// Calls function(std::type_identity<Shape>{}, plan) for the row that serves the layer; UnsupportedError when there is
/// none.
template <template <class, int, int, int> class KernelShape, class Stage, class Function>
void visit_selected_shape(const Stage& a, Function&& function) {
  const SelectedPlan plan = selected_plan<KernelShape>(a);
  if (plan.row < 0) refuse_shape(*a.config);
  visit_row<KernelShape>(plan.row, a.dtype,
                         [&]<class Shape>(std::type_identity<Shape> shape) { function(shape, plan); });
}

/// The rows of q in boxes of those of a warp.
template <class Rows, class Stage>
TensorLayout warp_rows_layout(const Stage& a, const Rows& rows) {
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
