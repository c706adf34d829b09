#pragma once

// Hopper's attention kernel for branches whose keys are consecutive rows of a tensor: compressed and window. Each
// consumer warpgroup has 64 (query, head) rows of one KV head (head_rows.cuh). A producer thread fills a ring of key
// and value tiles by TMA; S = Q Kᵀ and O += P V run on WGMMA, the next tile's S beside the last tile's O. Thread blocks
// are persistent: the producer loads the next work item while the consumers finish one.

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/sm90/attention/warpgroup_rows.cuh"
#include "kernels/cuda/sm90/head_rows.cuh"
#include "kernels/cuda/sm90/key_walk.cuh"
#include "kernels/cuda/sm90/registers.hpp"
#include "kernels/cuda/sm90/ring.cuh"
#include "kernels/cuda/sm90/shapes.hpp"
#include "kernels/cuda/sm90/shared_memory.cuh"
#include "kernels/cuda/sm90/work_list.cuh"

namespace cpnsa::cuda::sm90 {

/// Two consumer warpgroups would leave registers for longer key tiles; three read each key for more queries.
template <class Element, int Dqk, int Dv, int Heads>
struct AttentionShape {
  using T = Element;
  static constexpr auto table = TableRow<Dqk, Dv, Heads>::shape.attention;
  static constexpr int d_qk = Dqk;
  static constexpr int d_v = Dv;
  static constexpr int heads_per_group = Heads;
  using Rows = HeadRows<Heads, 64>;  ///< of a warpgroup
  static constexpr int consumers = table.warpgroups;
  static constexpr int keys = table.keys;
  static constexpr int threads = 128 * (consumers + 1);
  static constexpr int consumer_registers = table.consumer_registers;
  static constexpr int producer_registers = spare_registers(threads, 128 * consumers, consumer_registers);
  using Queries = PanelTile<T, 64 * consumers, Dqk>;
  using Keys = PanelTile<T, keys, Dqk>;
  using Values = PanelTile<T, keys, Dv>;
  static constexpr int num_work_slots = 3;
  static constexpr int max_stages = 4;
  static constexpr int ring_bytes = max_shared_bytes - tile_alignment - static_cast<int>(sizeof(Queries)) -
                                    (2 * consumers + 4 * max_stages) * static_cast<int>(sizeof(Mbarrier)) -
                                    num_work_slots * static_cast<int>(sizeof(Work)) -
                                    4 * consumers * static_cast<int>(sizeof(typename VisibleKeys<Rows>::Ranges));
  static constexpr int stages = std::min(max_stages, ring_bytes / static_cast<int>(sizeof(Keys) + sizeof(Values)));
  static_assert(keys % 16 == 0 && stages >= 2);
  static_assert(registers_suffice(threads, 128 * consumers, producer_registers, consumer_registers));
};

template <class Shape>
struct AttentionLayout {
  typename Shape::Queries q;  ///< 64 rows per consumer warpgroup
  typename Shape::Keys k[Shape::stages];
  typename Shape::Values v[Shape::stages];
  Mbarrier q_full[Shape::consumers];
  Mbarrier q_empty[Shape::consumers];
  Mbarrier k_full[Shape::stages];
  Mbarrier k_empty[Shape::stages];
  Mbarrier v_full[Shape::stages];
  Mbarrier v_empty[Shape::stages];
  Work work[Shape::num_work_slots];
  typename VisibleKeys<typename Shape::Rows>::Ranges visible[4 * Shape::consumers];  ///< of a warp
};

template <class Shape>
struct AttentionMemory : SharedMemory<AttentionLayout<Shape>> {
  using Layout = AttentionLayout<Shape>;
  static_assert(SharedMemory<Layout>::bytes <= max_shared_bytes);
  static_assert(sizeof(typename Shape::Queries) % tile_alignment == 0 &&
                sizeof(typename Shape::Keys) % tile_alignment == 0);

  /// The work slot of the block's `item`-th item. A slot is reused once every consumer has finished the next item's
  /// scores, by which time this item's output has been written.
  __device__ Work& work(int item) const { return (*this)->work[item % Shape::num_work_slots]; }

  /// The rows of a consumer warpgroup in a panel of q.
  __device__ std::uint32_t q(int warpgroup, int panel = 0) const {
    return this->at(offsetof(Layout, q), warpgroup, 64 * swizzle_bytes) + panel * Shape::Queries::panel_bytes;
  }
  __device__ std::uint32_t k(int stage, int panel = 0) const {
    return this->at(offsetof(Layout, k), stage, sizeof(typename Shape::Keys)) + panel * Shape::Keys::panel_bytes;
  }
  __device__ std::uint32_t v(int stage, int panel = 0) const {
    return this->at(offsetof(Layout, v), stage, sizeof(typename Shape::Values)) + panel * Shape::Values::panel_bytes;
  }
  __device__ std::uint32_t q_full(int warpgroup) const { return this->barrier(offsetof(Layout, q_full), warpgroup); }
  __device__ std::uint32_t q_empty(int warpgroup) const { return this->barrier(offsetof(Layout, q_empty), warpgroup); }
  __device__ std::uint32_t k_full(int stage) const { return this->barrier(offsetof(Layout, k_full), stage); }
  __device__ std::uint32_t k_empty(int stage) const { return this->barrier(offsetof(Layout, k_empty), stage); }
  __device__ std::uint32_t v_full(int stage) const { return this->barrier(offsetof(Layout, v_full), stage); }
  __device__ std::uint32_t v_empty(int stage) const { return this->barrier(offsetof(Layout, v_empty), stage); }

  __device__ void initialise() const {
    for (int warpgroup = 0; warpgroup < Shape::consumers; ++warpgroup) {
      ptx::mbarrier_init(q_full(warpgroup), 1);
      ptx::mbarrier_init(q_empty(warpgroup), 1);
    }
    for (int stage = 0; stage < Shape::stages; ++stage) {
      ptx::mbarrier_init(k_full(stage), 1);
      ptx::mbarrier_init(k_empty(stage), Shape::consumers);
      ptx::mbarrier_init(v_full(stage), 1);
      ptx::mbarrier_init(v_empty(stage), Shape::consumers);
    }
    ptx::fence_mbarrier_init();
  }
};

template <class Shape, class Walk>
__device__ __forceinline__ void producer_loop(const AttentionProblem<typename Shape::T>& a, const WorkList& work,
                                              const CUtensorMap& queries, const typename Walk::Parameters& parameters,
                                              const AttentionMemory<Shape>& smem) {
  const typename Shape::Rows rows(a.heads_per_group);
  RingPosition<Shape::stages> ring;
  int number = 0;  // of the item among the block's
  int item = work.first();
  for (; item < work.count(); ++number) {
    const QueryTile tile = a.tiles[tile_of(work, item)];
    const int slice = item % work.num_kv_heads, group = rows.kv_head(slice);
    const Walk walk(parameters, a.segments[tile.segment], tile);
    item = work.next();
    smem.work(number) = {tile, slice, true};
    const auto load_queries = [&] {
      for (int warpgroup = 0; warpgroup < Shape::consumers; ++warpgroup) {
        const std::uint32_t full = smem.q_full(warpgroup);
        ptx::mbarrier_wait(smem.q_empty(warpgroup), number % 2 ^ 1);
        ptx::mbarrier_arrive_expect_tx(full, rows.num_rows() * swizzle_bytes * Shape::Queries::num_panels);
        for (int panel = 0; panel < Shape::Queries::num_panels; ++panel)
          ptx::tma_load(smem.q(warpgroup, panel), &queries, full, panel * panel_channels, rows.first_head(slice),
                        static_cast<int>(tile.row) + warpgroup * rows.queries());
      }
    };
    if (walk.tiles == 0) load_queries();
    for (int index = 0; index < walk.tiles; ++index, ring.advance()) {
      const TileLocation from = walk.location(index);
      const std::uint32_t k_full = smem.k_full(ring.stage), v_full = smem.v_full(ring.stage);
      ptx::mbarrier_wait(smem.k_empty(ring.stage), ring.phase ^ 1);
      ptx::mbarrier_arrive_expect_tx(k_full, sizeof(typename Shape::Keys));
      for (int panel = 0; panel < Shape::Keys::num_panels; ++panel)
        ptx::tma_load(smem.k(ring.stage, panel), &parameters.keys[from.map], k_full, panel * panel_channels, group,
                      from.row);
      if (index == 0) load_queries();  // after the first keys: the last item's queries may still be in use
      ptx::mbarrier_wait(smem.v_empty(ring.stage), ring.phase ^ 1);
      ptx::mbarrier_arrive_expect_tx(v_full, sizeof(typename Shape::Values));
      for (int panel = 0; panel < Shape::Values::num_panels; ++panel)
        ptx::tma_load(smem.v(ring.stage, panel), &parameters.values[from.map], v_full, panel * panel_channels, group,
                      from.row);
    }
  }
  smem.work(number).given = false;
  for (int warpgroup = 0; warpgroup < Shape::consumers; ++warpgroup) {
    ptx::mbarrier_wait(smem.q_empty(warpgroup), number % 2 ^ 1);
    ptx::mbarrier_arrive(smem.q_full(warpgroup));
  }
}

/// Enqueues S = Q Kᵀ of a warpgroup's 64 rows and a key tile.
template <class Shape>
__device__ __forceinline__ void enqueue_scores(float (&s)[Shape::keys / 2], std::uint64_t q, std::uint64_t k) {
  ptx::warpgroup_fence_operand(s);
  ptx::wgmma_fence();
#pragma unroll
  for (int step = 0; step < Shape::d_qk / 16; ++step)  // S = Q Kᵀ
    ptx::wgmma_ss(typename Shape::T{}, s, ptx::advance_desc(q, Shape::Queries::channel_offset(step)),
                  ptx::advance_desc(k, Shape::Keys::channel_offset(step)), step > 0);
  ptx::wgmma_commit();
}

/// Enqueues O += P V, with P in registers.
template <class Shape>
__device__ __forceinline__ void enqueue_output(float (&o)[Shape::d_v / 2],
                                               const std::uint32_t (&p)[Shape::keys / 16][4], std::uint64_t v) {
  ptx::warpgroup_fence_operand(o);
  ptx::wgmma_fence();
#pragma unroll
  for (int step = 0; step < Shape::keys / 16; ++step)  // O += P V
    ptx::wgmma_rs(typename Shape::T{}, o, p[step], ptx::advance_desc(v, Shape::Values::row_offset(step)));
  ptx::wgmma_commit();
}

template <class Shape, class Walk>
__device__ __forceinline__ void consumer_loop(const AttentionProblem<typename Shape::T>& a,
                                              const typename Walk::Parameters& parameters,
                                              const AttentionMemory<Shape>& smem) {
  using T = typename Shape::T;
  const int warpgroup = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const bool is_leader = threadIdx.x % 128 == 0;
  using Rows = typename Shape::Rows;
  // Descriptors are made again for each tile, because they would take registers of every lane in between.
  const auto q = [&] { return ptx::make_smem_desc(smem.q(warpgroup)); };
  const auto k = [&](int stage) { return ptx::make_smem_desc(smem.k(stage)); };
  const auto v = [&](int stage) { return ptx::make_smem_desc(smem.v(stage), Shape::Values::panel_bytes); };
  RingPosition<Shape::stages> ring;  // of the key tile whose scores come next
  for (int number = 0;; ++number) {
    ptx::mbarrier_wait(smem.q_full(warpgroup), number % 2);
    const Work& work = smem.work(number);
    if (!work.given) return;
    const Walk walk(parameters, a.segments[work.tile.segment], work.tile);
    const VisibleKeys<Rows> visible(smem->visible[threadIdx.x / 32 - 4], walk, Rows::recomputed(a.heads_per_group),
                                    warpgroup);

    SoftmaxRows state;
    float o[Shape::d_v / 2] = {};
    if (walk.tiles > 0) {
      float s[Shape::keys / 2];
      std::uint32_t p[Shape::keys / 16][4];
      const auto online_softmax = [&](int index, float(&rescale)[2]) {
        const int first = index * Shape::keys;
        const KeyRange of_all = visible.of_all();
        if (first < of_all.begin || first + Shape::keys > of_all.end) visible.mask(s, first, -INFINITY);
        return online_softmax_lazy_rescale(state, reinterpret_cast<float(&)[Shape::keys / 8][4]>(s), a.scale_log2,
                                           rescale);
      };
      const auto release_keys = [&](int index) {
        if (!is_leader) return;
        ptx::mbarrier_arrive(smem.k_empty(ring.stage));
        // The next item's queries are loaded during the rest of this one.
        if (index == walk.tiles - 1) ptx::mbarrier_arrive(smem.q_empty(warpgroup));
      };
      float rescale[2];
      ptx::mbarrier_wait(smem.k_full(ring.stage), ring.phase);
      enqueue_scores<Shape>(s, q(), k(ring.stage));
      ptx::wgmma_wait<0>();
      ptx::warpgroup_fence_operand(s);
      release_keys(0);
      online_softmax(0, rescale);
      to_operand<T>(p, s);
      RingPosition<Shape::stages> values = ring;
      ring.advance();
      for (int index = 1; index < walk.tiles; ++index) {
        ptx::mbarrier_wait(smem.k_full(ring.stage), ring.phase);
        ptx::mbarrier_wait(smem.v_full(values.stage), values.phase);
        enqueue_scores<Shape>(s, q(), k(ring.stage));
        enqueue_output<Shape>(o, p, v(values.stage));
        ptx::wgmma_wait<1>();
        ptx::warpgroup_fence_operand(s);
        release_keys(index);
        const bool rises = online_softmax(index, rescale);
        ptx::wgmma_wait<0>();
        ptx::warpgroup_fence_operand(o);
        if (is_leader) ptx::mbarrier_arrive(smem.v_empty(values.stage));
        if (rises) rescale_output(reinterpret_cast<float(&)[Shape::d_v / 8][4]>(o), rescale);
        to_operand<T>(p, s);
        values = ring;
        ring.advance();
      }
      ptx::mbarrier_wait(smem.v_full(values.stage), values.phase);
      enqueue_output<Shape>(o, p, v(values.stage));
      ptx::wgmma_wait<0>();
      ptx::warpgroup_fence_operand(o);
      if (is_leader) ptx::mbarrier_arrive(smem.v_empty(values.stage));
    } else {
      // Without products, which make the four warps wait for each other, the slot could be freed before all have read
      // it.
      ptx::named_barrier(1 + warpgroup, 128);
      if (is_leader) ptx::mbarrier_arrive(smem.q_empty(warpgroup));
    }

    state.finish();
    const auto rows = Rows::recomputed(a.heads_per_group);
    const int d_v = layer_d_v<Shape>(a);
    const auto head_row = [&](int row) {  // of the warp's 16
      return head_row_of(rows, work.tile, work.group, warpgroup, warp * 16 + row, a.num_q_heads);
    };
    write_output<T>(
        o, state,
        [&](int row) {
          const std::int64_t at = head_row(row);
          return at < 0 ? nullptr : a.out + at * d_v;
        },
        d_v);
    if (lane % 4 == 0) {
#pragma unroll
      for (int half = 0; half < 2; ++half)
        if (const std::int64_t at = head_row(lane / 4 + 8 * half); at >= 0) a.log_sum_exp[at] = state.log_sum_exp(half);
    }
  }
}

template <class Shape, KeyWalk Walk>
__global__ void __launch_bounds__(Shape::threads, 1)
    attention_kernel(AttentionProblem<typename Shape::T> a, WorkList work, const __grid_constant__ CUtensorMap queries,
                     const __grid_constant__ typename Walk::Parameters parameters) {
  const AttentionMemory<Shape> smem{shared_memory<AttentionLayout<Shape>>()};
  if (threadIdx.x == 0) smem.initialise();
  zero_padding<64>(smem->q, typename Shape::Rows(a.heads_per_group));
  __syncthreads();
  if (threadIdx.x < 128) {
    ptx::warpgroup_reg_dealloc<Shape::producer_registers>();
    if (threadIdx.x == 0) producer_loop<Shape, Walk>(a, work, queries, parameters, smem);
  } else {
    ptx::warpgroup_reg_alloc<Shape::consumer_registers>();
    consumer_loop<Shape, Walk>(a, parameters, smem);
  }
}

}  // namespace cpnsa::cuda::sm90
