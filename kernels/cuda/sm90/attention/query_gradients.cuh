#pragma once

// Hopper's dQ, for branches whose keys are consecutive rows of a tensor: compressed and window. A consumer warpgroup
// has 4 queries of one KV head with their 16 heads, a warp a query, and their dQ in registers; a producer thread keeps
// a ring of tiles of 64 keys and values full. S = Q K^T, dP = dO V^T and dQ += dS K run on wgmma; dS goes from
// registers to the product. Blocks are persistent. The walks are those of the forward, with tiles of 64 keys.

#include <cstdint>

#include "kernels/cuda/sm90/attention/attention_tile.cuh"

namespace cpnsa::cuda::sm90 {

template <class Element, int Dqk, int Dv, int Heads>
struct QueryGradientShape {
  using T = Element;
  static constexpr int d_qk = Dqk;
  static constexpr int d_v = Dv;
  static constexpr auto table = TableRow<Dqk, Dv, Heads>::shape.query_gradients;
  static constexpr int heads_per_group = Heads;
  static constexpr int queries = table.queries;
  static constexpr int own_queries = 64 / heads_per_group;  ///< of a warpgroup
  static constexpr int consumers = queries / own_queries;   ///< warpgroups: as many as leave room for dQ in registers
  static constexpr int rows = queries * heads_per_group;
  static constexpr int keys = table.keys;
  static constexpr int stages = table.stages;
  static constexpr int threads = 128 * (consumers + 1);
  static constexpr int producer_registers = 24;
  static constexpr int consumer_registers = table.consumer_registers;
  static constexpr int query_bytes = rows * Dqk * 2;
  static constexpr int dout_bytes = rows * Dv * 2;
  static constexpr int row_panel_bytes = rows * 128;  ///< of 64 channels
  static constexpr int key_bytes = keys * Dqk * 2;
  static constexpr int value_bytes = keys * Dv * 2;
  static constexpr int panel_bytes = keys * 128;
  static constexpr int barriers = 2 + 2 * stages;
  static constexpr int barriers_at = query_bytes + dout_bytes + stages * (key_bytes + value_bytes);
  static constexpr int work_at = (barriers_at + barriers * 8 + 15) / 16 * 16;
  static constexpr int shared_bytes = work_at + sizeof(Work);
  static_assert(shared_bytes + 1024 <= 227 * 1024);
  static_assert(registers_suffice(threads, 128 * consumers, producer_registers, consumer_registers));
};

/// A block's shared memory; the names are the protocol.
template <class Shape>
struct QueryGradientShared {
  std::uint32_t base;
  unsigned char* memory;  ///< at `base`

  /// From rows_ready() on until rows_free().
  __device__ Work& work() const { return *reinterpret_cast<Work*>(memory + Shape::work_at); }

  __device__ std::uint32_t query() const { return base; }
  __device__ std::uint32_t dout() const { return base + Shape::query_bytes; }
  __device__ std::uint32_t key(int stage) const { return dout() + Shape::dout_bytes + stage * Shape::key_bytes; }
  __device__ std::uint32_t value(int stage) const { return key(Shape::stages) + stage * Shape::value_bytes; }
  __device__ std::uint32_t rows_ready() const { return base + Shape::barriers_at; }
  __device__ std::uint32_t rows_free() const { return rows_ready() + 8; }
  __device__ std::uint32_t ready(int stage) const { return rows_ready() + 16 + stage * 8; }
  __device__ std::uint32_t free(int stage) const { return ready(Shape::stages) + stage * 8; }

  __device__ void initialise() const {
    ptx::mbarrier_init(rows_ready(), 1);
    ptx::mbarrier_init(rows_free(), Shape::consumers);
    for (int stage = 0; stage < Shape::stages; ++stage) {
      ptx::mbarrier_init(ready(stage), 1);
      ptx::mbarrier_init(free(stage), Shape::consumers);
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
                                              const QueryGradientShared<Shape>& shared) {
  RingPosition<Shape::stages> ring;
  int item_phase = 1;
  int item = work.first();
#pragma unroll 1
  for (; item < work.count(); item_phase ^= 1) {
    const QueryTile tile = a.tiles[tile_of(work, item)];
    const int group = item % work.num_kv_heads, row = static_cast<int>(tile.row);
    const Walk walk(parameters, a.segments[tile.segment], tile);
    item = work.next();
    ptx::mbarrier_wait(shared.rows_free(), item_phase);
    shared.work() = {tile, group, true};
    ptx::mbarrier_arrive_expect_tx(shared.rows_ready(), Shape::query_bytes + Shape::dout_bytes);
    for (int panel = 0; panel < Shape::d_qk / 64; ++panel)
      ptx::tma_load(shared.query() + panel * Shape::row_panel_bytes, &maps.queries, shared.rows_ready(), panel * 64,
                    group * Shape::heads_per_group, row);
    for (int panel = 0; panel < Shape::d_v / 64; ++panel)
      ptx::tma_load(shared.dout() + panel * Shape::row_panel_bytes, &maps.douts, shared.rows_ready(), panel * 64,
                    group * Shape::heads_per_group, row);
#pragma unroll 1
    for (int index = 0; index < walk.tiles; ++index, ring.advance()) {
      const TileLocation from = walk.location(index);
      const std::uint32_t ready = shared.ready(ring.stage);
      ptx::mbarrier_wait(shared.free(ring.stage), ring.phase ^ 1);
      ptx::mbarrier_arrive_expect_tx(ready, Shape::key_bytes + Shape::value_bytes);
      for (int panel = 0; panel < Shape::d_qk / 64; ++panel)
        ptx::tma_load(shared.key(ring.stage) + panel * Shape::panel_bytes, &parameters.keys[from.map], ready,
                      panel * 64, group, from.row);
      for (int panel = 0; panel < Shape::d_v / 64; ++panel)
        ptx::tma_load(shared.value(ring.stage) + panel * Shape::panel_bytes, &parameters.values[from.map], ready,
                      panel * 64, group, from.row);
    }
  }
  ptx::mbarrier_wait(shared.rows_free(), item_phase);
  shared.work().given = false;
  ptx::mbarrier_arrive(shared.rows_ready());
}

/// d = rows keys^T of a warpgroup's 64 rows and a tile, enqueued.
template <class Shape, int Dim>
__device__ __forceinline__ void enqueue_products(float (&d)[Shape::keys / 2], std::uint64_t rows, std::uint64_t keys) {
  ptx::warpgroup_fence_operand(d);
  ptx::wgmma_fence();
#pragma unroll
  for (int step = 0; step < Dim / 16; ++step)
    ptx::wgmma_ss(typename Shape::T{}, d, ptx::advance_desc(rows, step / 4 * Shape::row_panel_bytes + step % 4 * 32),
                  ptx::advance_desc(keys, step / 4 * Shape::panel_bytes + step % 4 * 32), step > 0);
  ptx::wgmma_commit();
}

/// What a lane knows of its two rows.
struct RowStatistics {
  float sum_log2[2];
  float weight[2];
  float delta[2];

  /// `head_row`: the warp's first; nothing is read unless it `exists`.
  template <class T>
  __device__ RowStatistics(const GradientProblem<T>& a, std::int64_t head_row, bool exists) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int64_t row = head_row + threadIdx.x % 32 / 4 + 8 * half;
      const float sum = exists ? a.log_sum_exp[row] : -INFINITY;
      sum_log2[half] = sum == -INFINITY ? INFINITY : sum * log2_e;  // 2^(s - infinity) is 0
      weight[half] = exists ? a.weights[row] : 0.f;
      delta[half] = exists ? a.deltas[row] : 0.f;
    }
  }
};

/// Adds a warp's 16 rows, which begin at `first`, to what is there.
template <int Values>
__device__ __forceinline__ void add_dq_rows(const float (&dq)[Values], float factor, float* first, int d_qk) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float* const row = first + (lane / 4 + 8 * half) * d_qk + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < Values / 4; ++n)
      ptx::red_add(row + n * 8, dq[4 * n + 2 * half] * factor, dq[4 * n + 2 * half + 1] * factor);
  }
}

template <class Shape, class Walk>
__device__ __forceinline__ void accumulate_dq(const GradientProblem<typename Shape::T>& a,
                                              const typename Walk::Parameters& parameters,
                                              const QueryGradientShared<Shape>& shared) {
  using T = typename Shape::T;
  const int warpgroup = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const bool is_leader = threadIdx.x % 128 == 0;
  const int query = warpgroup * Shape::own_queries + warp;  // in the tile
  const std::uint64_t own_query = ptx::make_smem_desc(shared.query() + warpgroup * 64 * 128),
                      own_dout = ptx::make_smem_desc(shared.dout() + warpgroup * 64 * 128);
  // Products make the four warps wait for each other. Where there is none a warp could pass on what the others have yet
  // to come to: they would then miss a turn of its barrier, and wait forever.
  const auto wait_for_all = [&] { ptx::named_barrier(1 + warpgroup, 128); };
  RingPosition<Shape::stages> ring;
  int item_phase = 0;
#pragma unroll 1
  for (;; item_phase ^= 1) {
    ptx::mbarrier_wait(shared.rows_ready(), item_phase);
    const auto [tile, group, given] = shared.work();
    if (!given) return;
    const Walk walk(parameters, a.segments[tile.segment], tile);
    const std::int64_t head_row = (tile.row + query) * a.num_q_heads + group * Shape::heads_per_group;
    const RowStatistics row(a, head_row, query < tile.rows);
    const KeyRange visible = walk.visible(query);
    // Of the warpgroup: what its first and its last query see.
    const int lowest = walk.visible(warpgroup * Shape::own_queries).begin,
              past = walk.visible((warpgroup + 1) * Shape::own_queries - 1).end;

    float dq[Shape::d_qk / 2] = {};
#pragma unroll 1
    for (int index = 0; index < walk.tiles; ++index, ring.advance()) {
      const int first = index * Shape::keys, stage = ring.stage;
      ptx::mbarrier_wait(shared.ready(stage), ring.phase);
      if (first >= past || first + Shape::keys <= lowest) {
        wait_for_all();
        if (is_leader) ptx::mbarrier_arrive(shared.free(stage));
        continue;
      }
      float s[Shape::keys / 2], dp[Shape::keys / 2];
      std::uint32_t ds[Shape::keys / 16][4];
      enqueue_products<Shape, Shape::d_qk>(s, own_query, ptx::make_smem_desc(shared.key(stage)));   // S = Q K^T
      enqueue_products<Shape, Shape::d_v>(dp, own_dout, ptx::make_smem_desc(shared.value(stage)));  // dP = dO V^T
      ptx::wgmma_wait<1>();
      ptx::warpgroup_fence_operand(s);
#pragma unroll
      for (int i = 0; i < Shape::keys / 2; ++i)
        s[i] = ptx::exp2_approximate(fmaf(s[i], a.scale_log2, -row.sum_log2[i / 2 % 2]));
      if (first < visible.begin || first + Shape::keys > visible.end) {
#pragma unroll
        for (int i = 0; i < Shape::keys / 2; ++i) {
          const int key = first + i / 4 * 8 + lane % 4 * 2 + i % 2;
          if (key < visible.begin || key >= visible.end) s[i] = 0.f;
        }
      }
      ptx::wgmma_wait<0>();
      ptx::warpgroup_fence_operand(dp);
#pragma unroll
      for (int i = 0; i < Shape::keys / 2; i += 2) {
        const int half = i / 2 % 2;
        ds[i / 8][i / 2 % 4] = narrow2<T>(s[i] * fmaf(row.weight[half], dp[i], -row.delta[half]),
                                          s[i + 1] * fmaf(row.weight[half], dp[i + 1], -row.delta[half]));
      }
      const std::uint64_t keys = ptx::make_smem_desc(shared.key(stage), Shape::panel_bytes);
      ptx::warpgroup_fence_operand(dq);
      ptx::wgmma_fence();
#pragma unroll
      for (int step = 0; step < Shape::keys / 16; ++step)  // dQ += dS K
        ptx::wgmma_rs(T{}, dq, ds[step], ptx::advance_desc(keys, step * 2048));
      ptx::wgmma_commit();
      ptx::wgmma_wait<0>();
      ptx::warpgroup_fence_operand(dq);
      if (is_leader) ptx::mbarrier_arrive(shared.free(stage));
    }
    wait_for_all();  // all know their work
    if (is_leader) ptx::mbarrier_arrive(shared.rows_free());
    if (query < tile.rows) add_dq_rows(dq, a.scale, a.dq + head_row * Shape::d_qk, Shape::d_qk);
  }
}

template <class Shape, class Walk>
__global__ void __launch_bounds__(Shape::threads, 1)
    query_gradients_kernel(const __grid_constant__ GradientProblem<typename Shape::T> a, WorkList work,
                           const __grid_constant__ QueryGradientMaps maps,
                           const __grid_constant__ typename Walk::Parameters parameters) {
  extern __shared__ unsigned char memory[];
  // The swizzle is a function of the address: tiles begin at multiples of 1024.
  const std::uint32_t start = ptx::shared_address(memory), base = (start + 1023) / 1024 * 1024;
  const QueryGradientShared<Shape> shared{base, memory + (base - start)};
  if (threadIdx.x == 0) shared.initialise();
  __syncthreads();
  if (threadIdx.x < 128) {
    ptx::warpgroup_reg_dealloc<Shape::producer_registers>();
    if (threadIdx.x == 0) producer_loop<Shape, Walk>(a, work, maps, parameters, shared);
  } else {
    ptx::warpgroup_reg_alloc<Shape::consumer_registers>();
    accumulate_dq<Shape, Walk>(a, parameters, shared);
  }
}

}  // namespace cpnsa::cuda::sm90
