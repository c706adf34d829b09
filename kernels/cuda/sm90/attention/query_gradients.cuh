#pragma once

// Hopper's dQ for branches whose keys are consecutive rows of a tensor: compressed and window. Each consumer warpgroup
// has 64 (query, head) rows of one KV head (head_rows.cuh), with dQ in registers; a producer thread fills a ring of key
// and value tiles. S = Q Kᵀ, dP = dO Vᵀ and dQ += dS K run on WGMMA; dS goes from registers to the product. Thread
// blocks are persistent. The key walks are those of the forward.

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/sm90/attention/attention_tile.cuh"

namespace cpnsa::cuda::sm90 {

template <class Element, int Dqk, int Dv, int Heads>
struct QueryGradientShape {
  using T = Element;
  static constexpr auto table = TableRow<Dqk, Dv, Heads>::shape.query_gradients;
  static constexpr int d_qk = Dqk;
  static constexpr int d_v = Dv;
  static constexpr int heads_per_group = Heads;
  using Rows = HeadRows<Heads, 64>;                   ///< of a warpgroup
  static constexpr int consumers = table.warpgroups;  ///< as many warpgroups as leave registers for dQ
  static constexpr int keys = table.keys;
  static constexpr int stages = table.stages;
  static constexpr int threads = 128 * (consumers + 1);
  static constexpr int consumer_registers = table.consumer_registers;
  static constexpr int producer_registers = spare_registers(threads, 128 * consumers, consumer_registers);
  /// Copies of rows into each panel: one where the rows of all warpgroups are consecutive in shared memory.
  static constexpr int copies = Rows::has_padding ? consumers : 1;
  using Queries = PanelTile<T, 64 * consumers, Dqk>;
  using Douts = PanelTile<T, 64 * consumers, Dv>;
  using Keys = PanelTile<T, keys, Dqk>;
  using Values = PanelTile<T, keys, Dv>;
  static_assert(registers_suffice(threads, 128 * consumers, producer_registers, consumer_registers));
};

template <class Shape>
struct QueryGradientLayout {
  typename Shape::Queries q;   ///< 64 rows per consumer warpgroup
  typename Shape::Douts dout;  ///< 64 rows per consumer warpgroup
  typename Shape::Keys k[Shape::stages];
  typename Shape::Values v[Shape::stages];
  Mbarrier rows_full;  ///< of q, dout and work
  Mbarrier rows_empty;
  Mbarrier kv_full[Shape::stages];
  Mbarrier kv_empty[Shape::stages];
  Work work;
  typename VisibleKeys<typename Shape::Rows>::Ranges visible[4 * Shape::consumers];  ///< of a warp
};

template <class Shape>
struct QueryGradientMemory : SharedMemory<QueryGradientLayout<Shape>> {
  using Layout = QueryGradientLayout<Shape>;
  static_assert(SharedMemory<Layout>::bytes <= max_shared_bytes);

  __device__ std::uint32_t q(int panel = 0) const {
    return this->at(offsetof(Layout, q), panel, Shape::Queries::panel_bytes);
  }
  __device__ std::uint32_t dout(int panel = 0) const {
    return this->at(offsetof(Layout, dout), panel, Shape::Douts::panel_bytes);
  }
  __device__ std::uint32_t k(int stage, int panel = 0) const {
    return this->at(offsetof(Layout, k), stage, sizeof(typename Shape::Keys)) + panel * Shape::Keys::panel_bytes;
  }
  __device__ std::uint32_t v(int stage, int panel = 0) const {
    return this->at(offsetof(Layout, v), stage, sizeof(typename Shape::Values)) + panel * Shape::Values::panel_bytes;
  }
  __device__ std::uint32_t rows_full() const { return this->barrier(offsetof(Layout, rows_full)); }
  __device__ std::uint32_t rows_empty() const { return this->barrier(offsetof(Layout, rows_empty)); }
  __device__ std::uint32_t kv_full(int stage) const { return this->barrier(offsetof(Layout, kv_full), stage); }
  __device__ std::uint32_t kv_empty(int stage) const { return this->barrier(offsetof(Layout, kv_empty), stage); }

  __device__ void initialise() const {
    ptx::mbarrier_init(rows_full(), 1);
    ptx::mbarrier_init(rows_empty(), Shape::consumers);
    for (int stage = 0; stage < Shape::stages; ++stage) {
      ptx::mbarrier_init(kv_full(stage), 1);
      ptx::mbarrier_init(kv_empty(stage), Shape::consumers);
    }
    ptx::fence_mbarrier_init();
  }
};

struct QueryGradientMaps {
  CUtensorMap queries;
  CUtensorMap douts;
};

template <class Shape, class Walk>
__device__ __forceinline__ void producer_loop(const GradientProblem<typename Shape::T>& a, const WorkList& work,
                                              const QueryGradientMaps& maps,
                                              const typename Walk::Parameters& parameters,
                                              const QueryGradientMemory<Shape>& smem) {
  const typename Shape::Rows rows(a.heads_per_group);
  RingPosition<Shape::stages> ring;
  int item_phase = 1;
  int item = work.first();
#pragma unroll 1
  for (; item < work.count(); item_phase ^= 1) {
    const QueryTile tile = a.tiles[tile_of(work, item)];
    const int slice = item % work.num_kv_heads, group = rows.kv_head(slice), row = static_cast<int>(tile.row);
    const Walk walk(parameters, a.segments[tile.segment], tile);
    item = work.next();
    const std::uint32_t rows_full = smem.rows_full();
    ptx::mbarrier_wait(smem.rows_empty(), item_phase);
    smem->work = {tile, slice, true};
    ptx::mbarrier_arrive_expect_tx(rows_full, rows.num_rows() * Shape::consumers * swizzle_bytes *
                                                  (Shape::Queries::num_panels + Shape::Douts::num_panels));
    for (int copy = 0; copy < Shape::copies; ++copy) {
      const int to = copy * 64 * swizzle_bytes, from = row + copy * rows.queries();
      for (int panel = 0; panel < Shape::Queries::num_panels; ++panel)
        ptx::tma_load(smem.q(panel) + to, &maps.queries, rows_full, panel * panel_channels, rows.first_head(slice),
                      from);
      for (int panel = 0; panel < Shape::Douts::num_panels; ++panel)
        ptx::tma_load(smem.dout(panel) + to, &maps.douts, rows_full, panel * panel_channels, rows.first_head(slice),
                      from);
    }
#pragma unroll 1
    for (int index = 0; index < walk.tiles; ++index, ring.advance()) {
      const TileLocation from = walk.location(index);
      const std::uint32_t kv_full = smem.kv_full(ring.stage);
      ptx::mbarrier_wait(smem.kv_empty(ring.stage), ring.phase ^ 1);
      ptx::mbarrier_arrive_expect_tx(kv_full, sizeof(typename Shape::Keys) + sizeof(typename Shape::Values));
      for (int panel = 0; panel < Shape::Keys::num_panels; ++panel)
        ptx::tma_load(smem.k(ring.stage, panel), &parameters.keys[from.map], kv_full, panel * panel_channels, group,
                      from.row);
      for (int panel = 0; panel < Shape::Values::num_panels; ++panel)
        ptx::tma_load(smem.v(ring.stage, panel), &parameters.values[from.map], kv_full, panel * panel_channels, group,
                      from.row);
    }
  }
  ptx::mbarrier_wait(smem.rows_empty(), item_phase);
  smem->work.given = false;
  ptx::mbarrier_arrive(smem.rows_full());
}

/// Enqueues d = rows keysᵀ, of a warpgroup's 64 rows of a tile of type Rows and a key or value tile of type Keys.
template <class Shape, class Rows, class Keys>
__device__ __forceinline__ void enqueue_products(float (&d)[Shape::keys / 2], std::uint64_t rows, std::uint64_t keys) {
  ptx::warpgroup_fence_operand(d);
  ptx::wgmma_fence();
#pragma unroll
  for (int step = 0; step < Rows::num_panels * panel_channels / 16; ++step)
    ptx::wgmma_ss(typename Shape::T{}, d, ptx::advance_desc(rows, Rows::channel_offset(step)),
                  ptx::advance_desc(keys, Keys::channel_offset(step)), step > 0);
  ptx::wgmma_commit();
}

/// The statistics of a lane's two rows.
struct RowStatistics {
  float sum_log2[2];
  float weight[2];
  float delta[2];

  /// `head_row`: the warp's first row; nothing is read unless it `exists`.
  template <class T>
  __device__ RowStatistics(const GradientProblem<T>& a, std::int64_t head_row, bool exists)
      : RowStatistics(
            a, {exists ? head_row + threadIdx.x % 32 / 4 : -1, exists ? head_row + threadIdx.x % 32 / 4 + 8 : -1}) {}

  /// `rows`: in [rows, H]; -1 for one that does not exist.
  template <class T>
  __device__ RowStatistics(const GradientProblem<T>& a, const std::int64_t (&rows)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int64_t row = rows[half];
      const bool exists = row >= 0;
      const float sum = exists ? a.log_sum_exp[row] : -INFINITY;
      sum_log2[half] = sum == -INFINITY ? INFINITY : sum * log2_e;  // 2^(s - infinity) is 0
      weight[half] = exists ? a.weights[row] : 0.f;
      delta[half] = exists ? a.deltas[row] : 0.f;
    }
  }
};

/// Adds dq times `factor` to those of a warp's 16 rows of global memory for which dq_row(row) is not null.
template <int Values, class DqRow>
__device__ __forceinline__ void add_dq_rows(const float (&dq)[Values], float factor, DqRow&& dq_row,
                                            int d_qk) requires std::is_invocable_v<DqRow, int> {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float* const first = dq_row(lane / 4 + 8 * half);
    if (!first) continue;
    float* const row = first + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < Values / 4; ++n)
      if (n * 8 < d_qk) ptx::red_add(row + n * 8, dq[4 * n + 2 * half] * factor, dq[4 * n + 2 * half + 1] * factor);
  }
}

/// The same for 16 rows that begin at `first`.
template <int Values>
__device__ __forceinline__ void add_dq_rows(const float (&dq)[Values], float factor, float* first, int d_qk) {
  add_dq_rows(
      dq, factor, [&](int row) { return first + row * d_qk; }, d_qk);
}

template <class Shape, class Walk>
__device__ __forceinline__ void accumulate_dq(const GradientProblem<typename Shape::T>& a,
                                              const typename Walk::Parameters& parameters,
                                              const QueryGradientMemory<Shape>& smem) {
  using T = typename Shape::T;
  const int warpgroup = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 % 4;
  const bool is_leader = threadIdx.x % 128 == 0;
  using Rows = typename Shape::Rows;
  const std::uint64_t q = ptx::make_smem_desc(smem.q() + warpgroup * 64 * swizzle_bytes),
                      dout = ptx::make_smem_desc(smem.dout() + warpgroup * 64 * swizzle_bytes);
  // Products make the four warps of a warpgroup wait for each other. Where there is none, a warp could release a
  // barrier that the others have not waited on yet; they would miss its phase and wait forever.
  const auto wait_for_all = [&] { ptx::named_barrier(1 + warpgroup, 128); };
  RingPosition<Shape::stages> ring;
  int item_phase = 0;
#pragma unroll 1
  for (;; item_phase ^= 1) {
    ptx::mbarrier_wait(smem.rows_full(), item_phase);
    const auto [tile, slice, given] = smem->work;
    if (!given) return;
    const Walk walk(parameters, a.segments[tile.segment], tile);
    const auto head_row_at = [&](int row) {  // of the warp's 16
      const auto rows = Rows::recomputed(a.heads_per_group);
      return head_row_of(rows, tile, slice, warpgroup, warp * 16 + row, a.num_q_heads);
    };
    const int of_lane = static_cast<int>(threadIdx.x) % 32 / 4;
    const RowStatistics row(a, {head_row_at(of_lane), head_row_at(of_lane + 8)});
    const auto rows = Rows::recomputed(a.heads_per_group);
    const VisibleKeys<Rows> visible(smem->visible[threadIdx.x / 32 - 4], walk, rows, warpgroup);
    // The keys that some query of the warpgroup sees.
    const int lowest = walk.visible(warpgroup * rows.queries()).begin,
              past = walk.visible((warpgroup + 1) * rows.queries() - 1).end;

    float dq[Shape::d_qk / 2] = {};
#pragma unroll 1
    for (int index = 0; index < walk.tiles; ++index, ring.advance()) {
      const int first = index * Shape::keys, stage = ring.stage;
      ptx::mbarrier_wait(smem.kv_full(stage), ring.phase);
      if (first >= past || first + Shape::keys <= lowest) {
        wait_for_all();
        if (is_leader) ptx::mbarrier_arrive(smem.kv_empty(stage));
        continue;
      }
      float s[Shape::keys / 2], dp[Shape::keys / 2];
      std::uint32_t ds[Shape::keys / 16][4];
      enqueue_products<Shape, typename Shape::Queries, typename Shape::Keys>(
          s, q, ptx::make_smem_desc(smem.k(stage)));  // S = Q Kᵀ
      enqueue_products<Shape, typename Shape::Douts, typename Shape::Values>(
          dp, dout, ptx::make_smem_desc(smem.v(stage)));  // dP = dO Vᵀ
      ptx::wgmma_wait<1>();
      ptx::warpgroup_fence_operand(s);
#pragma unroll
      for (int i = 0; i < Shape::keys / 2; ++i)
        s[i] = ptx::exp2_approximate(fmaf(s[i], a.scale_log2, -row.sum_log2[i / 2 % 2]));
      const KeyRange of_all = visible.of_all();
      if (first < of_all.begin || first + Shape::keys > of_all.end) visible.mask(s, first, 0.f);
      ptx::wgmma_wait<0>();
      ptx::warpgroup_fence_operand(dp);
#pragma unroll
      for (int i = 0; i < Shape::keys / 2; i += 2) {
        const int half = i / 2 % 2;
        ds[i / 8][i / 2 % 4] = narrow2<T>(s[i] * fmaf(row.weight[half], dp[i], -row.delta[half]),
                                          s[i + 1] * fmaf(row.weight[half], dp[i + 1], -row.delta[half]));
      }
      const std::uint64_t keys = ptx::make_smem_desc(smem.k(stage), Shape::Keys::panel_bytes);
      ptx::warpgroup_fence_operand(dq);
      ptx::wgmma_fence();
#pragma unroll
      for (int step = 0; step < Shape::keys / 16; ++step)  // dQ += dS K
        ptx::wgmma_rs(T{}, dq, ds[step], ptx::advance_desc(keys, Shape::Keys::row_offset(step)));
      ptx::wgmma_commit();
      ptx::wgmma_wait<0>();
      ptx::warpgroup_fence_operand(dq);
      if (is_leader) ptx::mbarrier_arrive(smem.kv_empty(stage));
    }
    wait_for_all();  // all have read their work
    if (is_leader) ptx::mbarrier_arrive(smem.rows_empty());
    const int d_qk = layer_d_qk<Shape>(a);
    add_dq_rows(
        dq, a.scale,
        [&](int row) {
          const std::int64_t at = head_row_at(row);
          return at < 0 ? nullptr : a.dq + at * d_qk;
        },
        d_qk);
  }
}

template <class Shape, KeyWalk Walk>
__global__ void __launch_bounds__(Shape::threads, 1)
    query_gradients_kernel(const __grid_constant__ GradientProblem<typename Shape::T> a, WorkList work,
                           const __grid_constant__ QueryGradientMaps maps,
                           const __grid_constant__ typename Walk::Parameters parameters) {
  const QueryGradientMemory<Shape> smem{shared_memory<QueryGradientLayout<Shape>>()};
  if (threadIdx.x == 0) smem.initialise();
  zero_padding<64>(smem->q, typename Shape::Rows(a.heads_per_group));
  zero_padding<64>(smem->dout, typename Shape::Rows(a.heads_per_group));
  __syncthreads();
  if (threadIdx.x < 128) {
    ptx::warpgroup_reg_dealloc<Shape::producer_registers>();
    if (threadIdx.x == 0) producer_loop<Shape, Walk>(a, work, maps, parameters, smem);
  } else {
    ptx::warpgroup_reg_alloc<Shape::consumer_registers>();
    accumulate_dq<Shape, Walk>(a, parameters, smem);
  }
}

}  // namespace cpnsa::cuda::sm90
