#pragma once

// Hopper's attention kernel, for branches whose keys are consecutive rows of a tensor: compressed and window. Query
// tiles are 4 tokens of one KV head for each consumer warpgroup, 16 heads each: 64 rows, so that a warp's 16 rows are
// one token. A producer thread keeps a ring of key and value tiles full through the copy engine; the products S = Q K^T
// and O += P V run on wgmma, the next tile's S beside the last one's O. Blocks are persistent: the producer loads the
// next work item while the consumers finish one.
//
// A walk says which keys a work item has; the kernel is templated on it:
//   Walk(const Parameters&, const Segment&, const QueryTile&)
//   int tiles                           key tiles, the first at key 0
//   TileLocation location(int tile)               where the tile's rows are: which of the parameters' maps, first row
//   KeyRange visible(int query)         keys that a query of the tile sees

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/sm90/attention/warpgroup_rows.cuh"
#include "kernels/cuda/sm90/registers.hpp"
#include "kernels/cuda/sm90/shapes.hpp"
#include "kernels/cuda/sm90/work_list.cuh"

namespace cpnsa::cuda::sm90 {

struct TileLocation {
  int map;
  int row;
};

/// Two consumer warpgroups would have registers for longer tiles of keys; three read each key for more queries.
template <class Element, int Dqk, int Dv, int Heads>
struct AttentionShape {
  using T = Element;
  static constexpr int d_qk = Dqk;
  static constexpr int d_v = Dv;
  static constexpr auto table = TableRow<Dqk, Dv, Heads>::shape.attention;
  static constexpr int heads_per_group = Heads;
  static constexpr int queries = table.queries;
  static constexpr int own_queries = 64 / heads_per_group;  ///< of a warpgroup
  static constexpr int consumers = queries / own_queries;
  static constexpr int rows = queries * heads_per_group;
  static constexpr int keys = table.keys;
  static constexpr int threads = 128 * (consumers + 1);
  static constexpr int producer_registers = 56;
  static constexpr int consumer_registers = 152;
  static constexpr int query_bytes = rows * Dqk * 2;
  static constexpr int own_query_bytes = own_queries * heads_per_group * 128;  ///< a warpgroup's, of 64 channels
  static constexpr int query_panel_bytes = rows * 128;                         ///< of 64 channels
  static constexpr int key_bytes = keys * Dqk * 2;
  static constexpr int value_bytes = keys * Dv * 2;
  static constexpr int panel_bytes = keys * 128;
  static constexpr int num_work_slots = 3;  ///< items that consumers may ask about
  static constexpr int max_stages = 4;
  static constexpr int max_tile_bytes =
      226 * 1024 - (2 * consumers + 4 * max_stages) * 8 - num_work_slots * static_cast<int>(sizeof(Work));
  static constexpr int stages = std::min(max_stages, (max_tile_bytes - query_bytes) / (key_bytes + value_bytes));
  static constexpr int barriers = 2 * consumers + 4 * stages;
  static constexpr int barriers_at = query_bytes + stages * (key_bytes + value_bytes);
  static constexpr int work_at = (barriers_at + barriers * 8 + 15) / 16 * 16;
  static constexpr int shared_bytes = work_at + num_work_slots * sizeof(Work);
  static_assert(keys % 16 == 0 && stages >= 2 && queries % own_queries == 0);
  static_assert(registers_suffice(threads, 128 * consumers, producer_registers, consumer_registers));
};

/// Shared-memory addresses of a block; the names are the protocol.
template <class Shape>
struct AttentionShared {
  std::uint32_t base;
  unsigned char* memory;  ///< at `base`

  /// Of an item by its number, among the block's. Its place is taken when all are done with the next one's scores, so
  /// with its own output.
  __device__ Work& work(int item) const {
    return reinterpret_cast<Work*>(memory + Shape::work_at)[item % Shape::num_work_slots];
  }

  __device__ std::uint32_t query(int warpgroup) const { return base + warpgroup * Shape::own_query_bytes; }
  __device__ std::uint32_t key(int stage) const { return base + Shape::query_bytes + stage * Shape::key_bytes; }
  __device__ std::uint32_t value(int stage) const { return key(Shape::stages) + stage * Shape::value_bytes; }
  __device__ std::uint32_t query_ready(int warpgroup) const { return value(Shape::stages) + warpgroup * 8; }
  __device__ std::uint32_t query_free(int warpgroup) const { return query_ready(Shape::consumers) + warpgroup * 8; }
  __device__ std::uint32_t key_ready(int stage) const { return query_free(Shape::consumers) + stage * 8; }
  __device__ std::uint32_t key_free(int stage) const { return key_ready(Shape::stages) + stage * 8; }
  __device__ std::uint32_t value_ready(int stage) const { return key_free(Shape::stages) + stage * 8; }
  __device__ std::uint32_t value_free(int stage) const { return value_ready(Shape::stages) + stage * 8; }

  __device__ void initialise() const {
    for (int warpgroup = 0; warpgroup < Shape::consumers; ++warpgroup) {
      ptx::mbarrier_init(query_ready(warpgroup), 1);
      ptx::mbarrier_init(query_free(warpgroup), 1);
    }
    for (int stage = 0; stage < Shape::stages; ++stage) {
      ptx::mbarrier_init(key_ready(stage), 1);
      ptx::mbarrier_init(key_free(stage), Shape::consumers);
      ptx::mbarrier_init(value_ready(stage), 1);
      ptx::mbarrier_init(value_free(stage), Shape::consumers);
    }
    ptx::fence_mbarrier_init();
  }
};

/// A position in a ring of stages.
template <int Stages>
struct RingPosition {
  int stage = 0;
  int phase = 0;
  __device__ void advance() {
    if (++stage == Stages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

/// Tiles that see most come first, each for all KV heads.
__device__ __forceinline__ int tile_of(const WorkList& work, int item) {
  return work.tiles - 1 - item / work.num_kv_heads;
}

template <class Shape, class Walk>
__device__ __forceinline__ void producer_loop(const AttentionProblem<typename Shape::T>& a, const WorkList& work,
                                              const CUtensorMap& queries, const typename Walk::Parameters& parameters,
                                              const AttentionShared<Shape>& shared) {
  RingPosition<Shape::stages> ring;
  int number = 0;  // of the item, among the block's
  int item = work.first();
  for (; item < work.count(); ++number) {
    const QueryTile tile = a.tiles[tile_of(work, item)];
    const int group = item % work.num_kv_heads;
    const Walk walk(parameters, a.segments[tile.segment], tile);
    item = work.next();
    shared.work(number) = {tile, group, true};
    const auto load_queries = [&] {
      for (int own = 0; own < Shape::consumers; ++own) {
        ptx::mbarrier_wait(shared.query_free(own), number % 2 ^ 1);
        ptx::mbarrier_arrive_expect_tx(shared.query_ready(own), Shape::query_bytes / Shape::consumers);
        for (int panel = 0; panel < Shape::d_qk / 64; ++panel)
          ptx::tma_load(shared.query(own) + panel * Shape::query_panel_bytes, &queries, shared.query_ready(own),
                        panel * 64, group * Shape::heads_per_group,
                        static_cast<int>(tile.row) + own * Shape::own_queries);
      }
    };
    if (walk.tiles == 0) load_queries();
    for (int index = 0; index < walk.tiles; ++index, ring.advance()) {
      const TileLocation from = walk.location(index);
      ptx::mbarrier_wait(shared.key_free(ring.stage), ring.phase ^ 1);
      ptx::mbarrier_arrive_expect_tx(shared.key_ready(ring.stage), Shape::key_bytes);
      for (int panel = 0; panel < Shape::d_qk / 64; ++panel)
        ptx::tma_load(shared.key(ring.stage) + panel * Shape::panel_bytes, &parameters.keys[from.map],
                      shared.key_ready(ring.stage), panel * 64, group, from.row);
      if (index == 0) load_queries();  // the first keys come in while the last item's queries are in use
      ptx::mbarrier_wait(shared.value_free(ring.stage), ring.phase ^ 1);
      ptx::mbarrier_arrive_expect_tx(shared.value_ready(ring.stage), Shape::value_bytes);
      for (int panel = 0; panel < Shape::d_v / 64; ++panel)
        ptx::tma_load(shared.value(ring.stage) + panel * Shape::panel_bytes, &parameters.values[from.map],
                      shared.value_ready(ring.stage), panel * 64, group, from.row);
    }
  }
  shared.work(number).given = false;
  for (int own = 0; own < Shape::consumers; ++own) {
    ptx::mbarrier_wait(shared.query_free(own), number % 2 ^ 1);
    ptx::mbarrier_arrive(shared.query_ready(own));
  }
}

/// S = Q K^T of a warpgroup's 64 rows and a key tile, both as operands, enqueued.
template <class Shape>
__device__ __forceinline__ void enqueue_scores(float (&s)[Shape::keys / 2], std::uint64_t rows, std::uint64_t columns) {
  ptx::warpgroup_fence_operand(s);
  ptx::wgmma_fence();
#pragma unroll
  for (int step = 0; step < Shape::d_qk / 16; ++step)
    ptx::wgmma_ss(typename Shape::T{}, s, ptx::advance_desc(rows, step / 4 * Shape::query_panel_bytes + step % 4 * 32),
                  ptx::advance_desc(columns, step / 4 * Shape::panel_bytes + step % 4 * 32), step > 0);
  ptx::wgmma_commit();
}

/// O += P V, enqueued; V as an operand.
template <class Shape>
__device__ __forceinline__ void enqueue_output(float (&o)[Shape::d_v / 2],
                                               const std::uint32_t (&p)[Shape::keys / 16][4], std::uint64_t columns) {
  ptx::warpgroup_fence_operand(o);
  ptx::wgmma_fence();
#pragma unroll
  for (int step = 0; step < Shape::keys / 16; ++step)
    ptx::wgmma_rs(typename Shape::T{}, o, p[step], ptx::advance_desc(columns, step * 2048));
  ptx::wgmma_commit();
}

template <class Shape, class Walk>
__device__ __forceinline__ void consumer_loop(const AttentionProblem<typename Shape::T>& a,
                                              const typename Walk::Parameters& parameters,
                                              const AttentionShared<Shape>& shared) {
  using T = typename Shape::T;
  const int warpgroup = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const bool is_leader = threadIdx.x % 128 == 0;
  const int query = warpgroup * Shape::own_queries + warp;  // in the tile
  // Asked for at each tile: kept, it would be in the lanes' registers.
  const auto own_query = [&] { return ptx::make_smem_desc(shared.query(warpgroup)); };
  const auto key = [&](int stage) { return ptx::make_smem_desc(shared.key(stage)); };
  const auto value = [&](int stage) { return ptx::make_smem_desc(shared.value(stage), Shape::panel_bytes); };
  RingPosition<Shape::stages> ring;  // of the key tile whose scores come next
  for (int number = 0;; ++number) {
    ptx::mbarrier_wait(shared.query_ready(warpgroup), number % 2);
    const Work& work = shared.work(number);
    if (!work.given) return;
    const Walk walk(parameters, a.segments[work.tile.segment], work.tile);
    const KeyRange visible = walk.visible(query);

    SoftmaxRows state;
    float o[Shape::d_v / 2] = {};
    if (walk.tiles > 0) {
      float s[Shape::keys / 2];
      std::uint32_t p[Shape::keys / 16][4];
      const auto softmax = [&](int index, float(&rescale)[2]) {
        const int first = index * Shape::keys;
        if (first < visible.begin || first + Shape::keys > visible.end) mask_scores(s, visible, first);
        return online_softmax_lazy_rescale(state, reinterpret_cast<float(&)[Shape::keys / 8][4]>(s), a.scale_log2,
                                           rescale);
      };
      const auto release_keys = [&](int index) {
        if (!is_leader) return;
        ptx::mbarrier_arrive(shared.key_free(ring.stage));
        if (index == walk.tiles - 1)
          ptx::mbarrier_arrive(shared.query_free(warpgroup));  // the next ones come in meanwhile
      };
      float rescale[2];
      ptx::mbarrier_wait(shared.key_ready(ring.stage), ring.phase);
      enqueue_scores<Shape>(s, own_query(), key(ring.stage));
      ptx::wgmma_wait<0>();
      ptx::warpgroup_fence_operand(s);
      release_keys(0);
      softmax(0, rescale);
      to_operand<T>(p, s);
      RingPosition<Shape::stages> values = ring;
      ring.advance();
      for (int index = 1; index < walk.tiles; ++index) {
        ptx::mbarrier_wait(shared.key_ready(ring.stage), ring.phase);
        ptx::mbarrier_wait(shared.value_ready(values.stage), values.phase);
        enqueue_scores<Shape>(s, own_query(), key(ring.stage));
        enqueue_output<Shape>(o, p, value(values.stage));
        ptx::wgmma_wait<1>();
        ptx::warpgroup_fence_operand(s);
        release_keys(index);
        const bool rises = softmax(index, rescale);
        ptx::wgmma_wait<0>();
        ptx::warpgroup_fence_operand(o);
        if (is_leader) ptx::mbarrier_arrive(shared.value_free(values.stage));
        if (rises) rescale_output(reinterpret_cast<float(&)[Shape::d_v / 8][4]>(o), rescale);
        to_operand<T>(p, s);
        values = ring;
        ring.advance();
      }
      ptx::mbarrier_wait(shared.value_ready(values.stage), values.phase);
      enqueue_output<Shape>(o, p, value(values.stage));
      ptx::wgmma_wait<0>();
      ptx::warpgroup_fence_operand(o);
      if (is_leader) ptx::mbarrier_arrive(shared.value_free(values.stage));
    } else {
      ptx::named_barrier(1 + warpgroup, 128);  // all know their work; products are what makes warps wait otherwise
      if (is_leader) ptx::mbarrier_arrive(shared.query_free(warpgroup));
    }

    state.finish();
    if (query < work.tile.rows) {
      // The first of the query's 16 rows.
      const std::int64_t head_row = (work.tile.row + query) * a.num_q_heads + work.group * Shape::heads_per_group;
      write_output(o, state, a.out + head_row * Shape::d_v, Shape::d_v);
      if (lane % 4 == 0) {
        a.log_sum_exp[head_row + lane / 4] = state.log_sum_exp(0);
        a.log_sum_exp[head_row + lane / 4 + 8] = state.log_sum_exp(1);
      }
    }
  }
}

template <class Shape, class Walk>
__global__ void __launch_bounds__(Shape::threads, 1)
    attention_kernel(AttentionProblem<typename Shape::T> a, WorkList work, const __grid_constant__ CUtensorMap queries,
                     const __grid_constant__ typename Walk::Parameters parameters) {
  extern __shared__ unsigned char memory[];
  // The swizzle is a function of the address: tiles begin at multiples of 1024.
  const std::uint32_t start = ptx::shared_address(memory), base = (start + 1023) / 1024 * 1024;
  const AttentionShared<Shape> shared{base, memory + (base - start)};
  if (threadIdx.x == 0) shared.initialise();
  __syncthreads();
  if (threadIdx.x < 128) {
    ptx::warpgroup_reg_dealloc<Shape::producer_registers>();
    if (threadIdx.x == 0) producer_loop<Shape, Walk>(a, work, queries, parameters, shared);
  } else {
    ptx::warpgroup_reg_alloc<Shape::consumer_registers>();
    consumer_loop<Shape, Walk>(a, parameters, shared);
  }
}

}  // namespace cpnsa::cuda::sm90
