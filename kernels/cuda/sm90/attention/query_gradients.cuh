#pragma once

// Hopper's dQ, for branches whose keys are consecutive rows of a tensor: compressed and window. A consumer warpgroup
// has 4 queries of one KV head with their 16 heads, a warp a query, and their dQ in registers; a producer thread keeps
// a ring of tiles of 64 keys and values full. S = Q K^T, dP = dO V^T and dQ += dS K run on wgmma; dS goes from
// registers to the product. Blocks are persistent. The walks are those of the forward, with tiles of 64 keys.

#include <cstdint>

#include "kernels/cuda/sm90/attention/attention_tile.cuh"

namespace cpnsa::cuda::sm90 {

template <class Element, int Dk, int Dv, int Heads>
struct QueryGradientShape {
  using T = Element;
  static constexpr int dk = Dk;
  static constexpr int dv = Dv;
  static constexpr auto table = TableRow<Dk, Dv, Heads>::shape.query_gradients;
  static constexpr int heads = Heads;  ///< R
  static constexpr int queries = table.queries;
  static constexpr int own_queries = 64 / heads;           ///< of a warpgroup
  static constexpr int consumers = queries / own_queries;  ///< warpgroups: as many as leave room for dQ in registers
  static constexpr int rows = queries * heads;
  static constexpr int keys = table.keys;
  static constexpr int stages = table.stages;
  static constexpr int threads = 128 * (consumers + 1);
  static constexpr int producer_registers = 24;
  static constexpr int consumer_registers = table.consumer_registers;
  static constexpr int query_bytes = rows * Dk * 2;
  static constexpr int dout_bytes = rows * Dv * 2;
  static constexpr int row_column_bytes = rows * 128;  ///< of 64 channels
  static constexpr int key_bytes = keys * Dk * 2;
  static constexpr int value_bytes = keys * Dv * 2;
  static constexpr int column_bytes = keys * 128;
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
    ptx::barrier_init(rows_ready(), 1);
    ptx::barrier_init(rows_free(), Shape::consumers);
    for (int stage = 0; stage < Shape::stages; ++stage) {
      ptx::barrier_init(ready(stage), 1);
      ptx::barrier_init(free(stage), Shape::consumers);
    }
    ptx::fence_barrier_init();
  }
};

struct QueryGradientMaps {
  CUtensorMap queries;
  CUtensorMap douts;
};

template <class Shape, class Walk>
__device__ __forceinline__ void load_tiles(const GradientProblem<typename Shape::T>& a, const WorkList& work,
                                           const QueryGradientMaps& maps, const typename Walk::Parameters& parameters,
                                           const QueryGradientShared<Shape>& shared) {
  RingPosition<Shape::stages> ring;
  int item_phase = 1;
  int item = work.first();
#pragma unroll 1
  for (; item < work.count(); item_phase ^= 1) {
    const QueryTile tile = a.tiles[tile_of(work, item)];
    const int group = item % work.groups, row = static_cast<int>(tile.row);
    const Walk walk(parameters, a.segments[tile.segment], tile);
    item = work.next();
    ptx::barrier_wait(shared.rows_free(), item_phase);
    shared.work() = {tile, group, true};
    ptx::barrier_arrive_expect(shared.rows_ready(), Shape::query_bytes + Shape::dout_bytes);
    for (int column = 0; column < Shape::dk / 64; ++column)
      ptx::tensor_load(shared.query() + column * Shape::row_column_bytes, &maps.queries, shared.rows_ready(),
                       column * 64, group * Shape::heads, row);
    for (int column = 0; column < Shape::dv / 64; ++column)
      ptx::tensor_load(shared.dout() + column * Shape::row_column_bytes, &maps.douts, shared.rows_ready(), column * 64,
                       group * Shape::heads, row);
#pragma unroll 1
    for (int index = 0; index < walk.tiles; ++index, ring.advance()) {
      const Place place = walk.place(index);
      const std::uint32_t ready = shared.ready(ring.stage);
      ptx::barrier_wait(shared.free(ring.stage), ring.phase ^ 1);
      ptx::barrier_arrive_expect(ready, Shape::key_bytes + Shape::value_bytes);
      for (int column = 0; column < Shape::dk / 64; ++column)
        ptx::tensor_load(shared.key(ring.stage) + column * Shape::column_bytes, &parameters.keys[place.map], ready,
                         column * 64, group, place.row);
      for (int column = 0; column < Shape::dv / 64; ++column)
        ptx::tensor_load(shared.value(ring.stage) + column * Shape::column_bytes, &parameters.values[place.map], ready,
                         column * 64, group, place.row);
    }
  }
  ptx::barrier_wait(shared.rows_free(), item_phase);
  shared.work().given = false;
  ptx::barrier_arrive(shared.rows_ready());
}

/// d = rows keys^T of a warpgroup's 64 rows and a tile, enqueued.
template <class Shape, int Dim>
__device__ __forceinline__ void enqueue_products(float (&d)[Shape::keys / 2], std::uint64_t rows, std::uint64_t keys) {
  ptx::hold(d);
  ptx::wgmma_fence();
#pragma unroll
  for (int step = 0; step < Dim / 16; ++step)
    ptx::wgmma_nt(typename Shape::T{}, d, ptx::advance(rows, step / 4 * Shape::row_column_bytes + step % 4 * 32),
                  ptx::advance(keys, step / 4 * Shape::column_bytes + step % 4 * 32), step > 0);
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
__device__ __forceinline__ void add_query_rows(const float (&dq)[Values], float factor, float* first, int dk) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float* const row = first + (lane / 4 + 8 * half) * dk + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < Values / 4; ++n)
      ptx::add_to_memory(row + n * 8, dq[4 * n + 2 * half] * factor, dq[4 * n + 2 * half + 1] * factor);
  }
}

template <class Shape, class Walk>
__device__ __forceinline__ void sum_queries(const GradientProblem<typename Shape::T>& a,
                                            const typename Walk::Parameters& parameters,
                                            const QueryGradientShared<Shape>& shared) {
  using T = typename Shape::T;
  const int warpgroup = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const bool speaks = threadIdx.x % 128 == 0;
  const int query = warpgroup * Shape::own_queries + warp;  // in the tile
  const std::uint64_t own_query = ptx::operand(shared.query() + warpgroup * 64 * 128),
                      own_dout = ptx::operand(shared.dout() + warpgroup * 64 * 128);
  // Products make the four warps wait for each other. Where there is none a warp could pass on what the others have yet
  // to come to: they would then miss a turn of its barrier, and wait forever.
  const auto wait_for_all = [&] { ptx::named_barrier(1 + warpgroup, 128); };
  RingPosition<Shape::stages> ring;
  int item_phase = 0;
#pragma unroll 1
  for (;; item_phase ^= 1) {
    ptx::barrier_wait(shared.rows_ready(), item_phase);
    const auto [tile, group, given] = shared.work();
    if (!given) return;
    const Walk walk(parameters, a.segments[tile.segment], tile);
    const std::int64_t head_row = (tile.row + query) * a.heads + group * Shape::heads;
    const RowStatistics row(a, head_row, query < tile.rows);
    const KeyRange visible = walk.visible(query);
    // Of the warpgroup: what its first and its last query see.
    const int lowest = walk.visible(warpgroup * Shape::own_queries).begin,
              past = walk.visible((warpgroup + 1) * Shape::own_queries - 1).end;

    float dq[Shape::dk / 2] = {};
#pragma unroll 1
    for (int index = 0; index < walk.tiles; ++index, ring.advance()) {
      const int first = index * Shape::keys, stage = ring.stage;
      ptx::barrier_wait(shared.ready(stage), ring.phase);
      if (first >= past || first + Shape::keys <= lowest) {
        wait_for_all();
        if (speaks) ptx::barrier_arrive(shared.free(stage));
        continue;
      }
      float s[Shape::keys / 2], dp[Shape::keys / 2];
      std::uint32_t ds[Shape::keys / 16][4];
      enqueue_products<Shape, Shape::dk>(s, own_query, ptx::operand(shared.key(stage)));    // S = Q K^T
      enqueue_products<Shape, Shape::dv>(dp, own_dout, ptx::operand(shared.value(stage)));  // dP = dO V^T
      ptx::wgmma_wait<1>();
      ptx::hold(s);
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
      ptx::hold(dp);
#pragma unroll
      for (int i = 0; i < Shape::keys / 2; i += 2) {
        const int half = i / 2 % 2;
        ds[i / 8][i / 2 % 4] = narrow2<T>(s[i] * fmaf(row.weight[half], dp[i], -row.delta[half]),
                                          s[i + 1] * fmaf(row.weight[half], dp[i + 1], -row.delta[half]));
      }
      const std::uint64_t keys = ptx::operand(shared.key(stage), Shape::column_bytes);
      ptx::hold(dq);
      ptx::wgmma_fence();
#pragma unroll
      for (int step = 0; step < Shape::keys / 16; ++step)  // dQ += dS K
        ptx::wgmma_rn(T{}, dq, ds[step], ptx::advance(keys, step * 2048));
      ptx::wgmma_commit();
      ptx::wgmma_wait<0>();
      ptx::hold(dq);
      if (speaks) ptx::barrier_arrive(shared.free(stage));
    }
    wait_for_all();  // all know their work
    if (speaks) ptx::barrier_arrive(shared.rows_free());
    if (query < tile.rows) add_query_rows(dq, a.scale, a.dq + head_row * Shape::dk, Shape::dk);
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
    ptx::give_registers<Shape::producer_registers>();
    if (threadIdx.x == 0) load_tiles<Shape, Walk>(a, work, maps, parameters, shared);
  } else {
    ptx::take_registers<Shape::consumer_registers>();
    sum_queries<Shape, Walk>(a, parameters, shared);
  }
}

}  // namespace cpnsa::cuda::sm90
