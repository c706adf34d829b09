#pragma once

// Hopper's dK and dV: a thread block keeps a tile of keys of one KV head and walks the queries that see it, four at a
// time with their 16 heads: 64 rows. Two consumer warpgroups compute S^T and dP^T on wgmma, whose registers are then
// the first operand of dV += P^T dO and dK += dS^T Q, so that no score passes through shared memory; the sums stay in
// registers. Of a tile of 128 keys each warpgroup has 64 and both take every stage of queries; a tile of 64 keys
// belongs to both, which take the stages in turn. A producer warpgroup keeps a ring full: one warp copies queries and
// output gradients, two load the rows' statistics.
//
// A walk says which keys a thread block has and which queries see them; the kernel is templated on it:
//   struct Parameters                     what the host gives, with maps of queries, douts, keys, values, and `order`
//   struct Plan : KeyPlan                 the work of one thread block
//   static Plan plan(problem, parameters, ticket)
//   Walk(problem, parameters, plan)       before the first stage
//   void next()                           moves to the next stage
//   int row(int query)                    local row of one of the stage's queries; any that exists for one that does
//   not KeyRange visible(int query)           keys of the tile that it sees; none for a query that the stage does not
//   have copies                                1 if a stage's queries are consecutive rows, else the queries of a stage

#include <algorithm>
#include <cstdint>
#include <new>

#include "kernels/cuda/common/ordered_accumulation.cuh"
#include "kernels/cuda/sm90/attention/attention_tile.cuh"

namespace cpnsa::cuda::sm90 {

template <class Element, int Dqk, int Dv, int Heads, int Keys>
struct KeyGradientShape {
  using T = Element;
  static constexpr int d_qk = Dqk;
  static constexpr int d_v = Dv;
  static constexpr int heads_per_group = Heads;
  /// Of a stage: as many as leave room for the sums in registers.
  static constexpr int queries = TableRow<Dqk, Dv, Heads>::shape.key_gradients.queries;
  static constexpr int rows = queries * heads_per_group;
  static constexpr int keys = Keys;
  static constexpr bool splits_queries = Keys == 64;  ///< whether the warpgroups take stages in turn, or share them
  static constexpr int consumers = 2;
  static constexpr int threads = 128 * (consumers + 1);
  static constexpr int statistics_warps = 2;  ///< each has every second stage, of the ring and of what is to come
  static constexpr int producer_registers = 40;
  static constexpr int consumer_registers = 232;
  static constexpr int key_bytes = keys * Dqk * 2;
  static constexpr int value_bytes = keys * Dv * 2;
  static constexpr int key_panel_bytes = keys * 128;  ///< of 64 channels
  static constexpr int query_bytes = rows * Dqk * 2;
  static constexpr int dout_bytes = rows * Dv * 2;
  static constexpr int panel_bytes = rows * 128;
  /// Of a stage's rows: log-sum-exps in base 2, weights, deltas; and what its queries see.
  static constexpr int statistics_bytes = rows * 12 + queries * static_cast<int>(sizeof(KeyRange));
  static constexpr int room = 225 * 1024 - key_bytes - value_bytes;
  static constexpr int max_stages = std::min(8, room / (query_bytes + dout_bytes + statistics_bytes + 16));
  /// Even, so that a stage is always the same warpgroup's where they take them in turn.
  static constexpr int stages = splits_queries ? max_stages / 2 * 2 : max_stages;
  static constexpr int statistics_at = key_bytes + value_bytes + stages * (query_bytes + dout_bytes);
  static constexpr int barriers_at = statistics_at + stages * statistics_bytes;
  static constexpr int shared_bytes = barriers_at + (1 + 2 * stages) * 8;
  static_assert(stages >= 3 && shared_bytes + 1024 <= 226 * 1024 + 256 && statistics_bytes % 8 == 0);
  static_assert(registers_suffice(threads, 128 * consumers, producer_registers, consumer_registers));
};

/// What a thread block does.
struct KeyPlan {
  int keys;       ///< that exist of the tile; 0 if there is nothing to do
  int stages;     ///< of queries
  int map;        ///< of the parameters' key and value maps
  int head;       ///< coordinate of the tile in them
  int row;        ///< likewise
  int group;      ///< KV head
  int dkey_step;  ///< floats from key to key
  int dvalue_step;
  float* dkeys;  ///< sums of the first key
  float* dvalues;
  std::int64_t slot;  ///< of turns
  unsigned turn;      ///< of the first warpgroup
};

/// A block's shared memory; the names are the protocol.
template <class Shape>
struct KeyGradientShared {
  std::uint32_t base;
  unsigned char* memory;  ///< the same address

  __device__ std::uint32_t key() const { return base; }
  __device__ std::uint32_t value() const { return base + Shape::key_bytes; }
  __device__ std::uint32_t query(int stage) const { return value() + Shape::value_bytes + stage * Shape::query_bytes; }
  __device__ std::uint32_t dout(int stage) const { return query(Shape::stages) + stage * Shape::dout_bytes; }
  __device__ float* statistics(int stage) const {
    return reinterpret_cast<float*>(memory + Shape::statistics_at + stage * Shape::statistics_bytes);
  }
  __device__ KeyRange* visible(int stage) const {
    return reinterpret_cast<KeyRange*>(statistics(stage) + 3 * Shape::rows);
  }
  __device__ std::uint32_t keys_ready() const { return base + Shape::barriers_at; }
  __device__ std::uint32_t ready(int stage) const { return keys_ready() + 8 + stage * 8; }
  __device__ std::uint32_t free(int stage) const { return ready(Shape::stages) + stage * 8; }

  __device__ void initialise() const {
    ptx::mbarrier_init(keys_ready(), 1);
    for (int stage = 0; stage < Shape::stages; ++stage) {
      ptx::mbarrier_init(ready(stage), 2);  // the copies, and the statistics
      ptx::mbarrier_init(free(stage), Shape::splits_queries ? 4 : 4 * Shape::consumers);  // warps
    }
    ptx::fence_mbarrier_init();
  }
};

/// One warp: the tile's keys and values, then queries and output gradients of every stage.
template <class Shape, class Walk>
__device__ __forceinline__ void copy_rows(const GradientProblem<typename Shape::T>& a,
                                          const typename Walk::Parameters& parameters, const typename Walk::Plan& plan,
                                          const KeyGradientShared<Shape>& shared) {
  const int lane = threadIdx.x % 32;
  if (lane == 0) {
    ptx::mbarrier_arrive_expect_tx(shared.keys_ready(), Shape::key_bytes + Shape::value_bytes);
    for (int panel = 0; panel < Shape::d_qk / 64; ++panel)
      ptx::tma_load(shared.key() + panel * Shape::key_panel_bytes, &parameters.keys[plan.map], shared.keys_ready(),
                    panel * 64, plan.head, plan.row);
    for (int panel = 0; panel < Shape::d_v / 64; ++panel)
      ptx::tma_load(shared.value() + panel * Shape::key_panel_bytes, &parameters.values[plan.map], shared.keys_ready(),
                    panel * 64, plan.head, plan.row);
  }
  Walk walk(a, parameters, plan);
  RingPosition<Shape::stages> ring;
  const int head = plan.group * Shape::heads_per_group,
            part = lane * (Shape::heads_per_group * 128 * Shape::queries / Walk::copies);
#pragma unroll 1
  for (int count = plan.stages; count > 0; --count, ring.advance()) {
    walk.next();
    const int row = lane < Walk::copies ? walk.row(lane) : 0;
    ptx::mbarrier_wait(shared.free(ring.stage), ring.phase ^ 1);
    const std::uint32_t ready = shared.ready(ring.stage);
    if (lane == 0) ptx::mbarrier_arrive_expect_tx(ready, Shape::query_bytes + Shape::dout_bytes);
    __syncwarp();
    if (lane < Walk::copies) {
      for (int panel = 0; panel < Shape::d_qk / 64; ++panel)
        ptx::tma_load(shared.query(ring.stage) + panel * Shape::panel_bytes + part, &parameters.queries, ready,
                      panel * 64, head, row);
      for (int panel = 0; panel < Shape::d_v / 64; ++panel)
        ptx::tma_load(shared.dout(ring.stage) + panel * Shape::panel_bytes + part, &parameters.douts, ready, panel * 64,
                      head, row);
    }
  }
}

/// One of two warps: every second stage's statistics. Where the warpgroups take stages in turn, these are one
/// warpgroup's, which frees them in order: the warp is never so far ahead that a parity means another phase.
template <class Shape, class Walk>
__device__ __forceinline__ void load_statistics(const GradientProblem<typename Shape::T>& a,
                                                const typename Walk::Parameters& parameters,
                                                const typename Walk::Plan& plan,
                                                const KeyGradientShared<Shape>& shared) {
  const int lane = threadIdx.x % 32;
  Walk walk(a, parameters, plan);
  RingPosition<Shape::stages> ring;
  int mine = static_cast<int>(threadIdx.x) / 32 - 1;  // stages until one is this warp's
#pragma unroll 1
  for (int count = plan.stages; count > 0; --count, ring.advance()) {
    walk.next();
    if (mine-- > 0) continue;
    mine = Shape::statistics_warps - 1;
    float values[Shape::rows / 32][3];
#pragma unroll
    for (int i = 0; i < Shape::rows / 32; ++i) {
      const int query = lane / Shape::heads_per_group + 32 / Shape::heads_per_group * i;
      const KeyRange range = walk.visible(query);
      const bool sees = range.begin < range.end;
      const std::int64_t head_row = static_cast<std::int64_t>(walk.row(query)) * a.num_q_heads +
                                    plan.group * Shape::heads_per_group + lane % Shape::heads_per_group;
      const float sum = sees ? a.log_sum_exp[head_row] : -INFINITY;
      values[i][0] = sum == -INFINITY ? INFINITY : sum * log2_e;  // 2^(s - infinity) is 0
      values[i][1] = sees ? a.weights[head_row] : 0.f;
      values[i][2] = sees ? a.deltas[head_row] : 0.f;
    }
    const KeyRange range = lane < Shape::queries ? walk.visible(lane) : KeyRange{0, 0};
    ptx::mbarrier_wait(shared.free(ring.stage), ring.phase ^ 1);
    float* const to = shared.statistics(ring.stage) + lane;
#pragma unroll
    for (int i = 0; i < Shape::rows / 32; ++i)
#pragma unroll
      for (int what = 0; what < 3; ++what) to[what * Shape::rows + i * 32] = values[i][what];
    if (lane < Shape::queries) shared.visible(ring.stage)[lane] = range;
    __syncwarp();
    if (lane == 0) ptx::mbarrier_arrive(shared.ready(ring.stage));
  }
}

/// d = keys queries^T of a warpgroup's 64 keys and a stage's rows, enqueued.
template <class Shape, int Dim>
__device__ __forceinline__ void enqueue_transposed(float (&d)[Shape::rows / 2], std::uint64_t keys,
                                                   std::uint64_t rows) {
  ptx::warpgroup_fence_operand(d);
  ptx::wgmma_fence();
#pragma unroll
  for (int step = 0; step < Dim / 16; ++step)
    ptx::wgmma_ss(typename Shape::T{}, d, ptx::advance_desc(keys, step / 4 * Shape::key_panel_bytes + step % 4 * 32),
                  ptx::advance_desc(rows, step / 4 * Shape::panel_bytes + step % 4 * 32), step > 0);
  ptx::wgmma_commit();
}

/// sums += scores rows, enqueued.
template <class Shape, int Values>
__device__ __forceinline__ void enqueue_sums(float (&sums)[Values], const std::uint32_t (&scores)[Shape::rows / 16][4],
                                             std::uint64_t rows) {
  ptx::warpgroup_fence_operand(sums);
  ptx::wgmma_fence();
#pragma unroll
  for (int step = 0; step < Shape::rows / 16; ++step)
    ptx::wgmma_rs(typename Shape::T{}, sums, scores[step], ptx::advance_desc(rows, step * 2048));
  ptx::wgmma_commit();
}

/// Writes a warp's 16 keys.
template <int Values>
__device__ __forceinline__ void add_key_rows(const float (&sums)[Values], float factor, int first_key, int keys,
                                             float* first, int step) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int key = first_key + lane / 4 + 8 * half;
    if (key >= keys) continue;
    float* const row = first + static_cast<std::int64_t>(key) * step + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < Values / 4; ++n)
      ptx::red_add(row + n * 8, sums[4 * n + 2 * half] * factor, sums[4 * n + 2 * half + 1] * factor);
  }
}

template <class Shape, class Walk>
__device__ __forceinline__ void accumulate_dk_dv(const GradientProblem<typename Shape::T>& a,
                                                 const typename Walk::Parameters& parameters,
                                                 const typename Walk::Plan& plan,
                                                 const KeyGradientShared<Shape>& shared) {
  using T = typename Shape::T;
  const int warpgroup = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const int first_key = Shape::splits_queries ? 0 : warpgroup * 64;
  const std::uint64_t key = ptx::make_smem_desc(shared.key() + first_key * 128),
                      value = ptx::make_smem_desc(shared.value() + first_key * 128);
  const auto free = [&](int stage) {
    __syncwarp();
    if (lane == 0) ptx::mbarrier_arrive(shared.free(stage));
  };
  float dk[Shape::d_qk / 2] = {}, dv[Shape::d_v / 2] = {};
  ptx::mbarrier_wait(shared.keys_ready(), 0);
  RingPosition<Shape::stages> ring;
  int count = plan.stages;
  if (Shape::splits_queries && warpgroup == 1) {
    ring.advance();
    --count;
  }
#pragma unroll 1
  for (; count > 0; count -= Shape::splits_queries ? Shape::consumers : 1) {
    const int stage = ring.stage;
    ptx::mbarrier_wait(shared.ready(stage), ring.phase);
    ring.advance();
    if constexpr (Shape::splits_queries) ring.advance();
    bool all = true, some = false;  // of the stage's queries see all, any, of the keys
#pragma unroll
    for (int query = 0; query < Shape::queries; ++query) {
      const KeyRange range = shared.visible(stage)[query];
      all &= range.begin <= first_key && range.end >= first_key + 64;
      some |= range.begin < first_key + 64 && range.end > first_key && range.begin < range.end;
    }
    if (!some) {
      free(stage);
      continue;
    }
    float s[Shape::rows / 2], dp[Shape::rows / 2];
    std::uint32_t p[Shape::rows / 16][4], ds[Shape::rows / 16][4];
    enqueue_transposed<Shape, Shape::d_qk>(s, key, ptx::make_smem_desc(shared.query(stage)));   // S^T = K Q^T
    enqueue_transposed<Shape, Shape::d_v>(dp, value, ptx::make_smem_desc(shared.dout(stage)));  // dP^T = V dO^T
    ptx::wgmma_wait<1>();
    ptx::warpgroup_fence_operand(s);

    const float* const sums = shared.statistics(stage) + lane % 4 * 2;
    const auto pair = [&](int what, int n) {
      return *reinterpret_cast<const float2*>(sums + what * Shape::rows + n * 8);
    };
#pragma unroll
    for (int n = 0; n < Shape::rows / 8; ++n) {
      const float2 sum = pair(0, n);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        s[4 * n + i] = ptx::exp2_approximate(fmaf(s[4 * n + i], a.scale_log2, -(i % 2 ? sum.y : sum.x)));
    }
    if (!all) {
#pragma unroll
      for (int n = 0; n < Shape::rows / 8; ++n) {
        const KeyRange range = shared.visible(stage)[n * 8 / Shape::heads_per_group];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int at = first_key + warp * 16 + lane / 4 + i / 2 * 8;
          if (at < range.begin || at >= range.end) s[4 * n + i] = 0.f;
        }
      }
    }
    ptx::wgmma_wait<0>();
    ptx::warpgroup_fence_operand(dp);
#pragma unroll
    for (int n = 0; n < Shape::rows / 8; ++n) {
      const float2 weight = pair(1, n), delta = pair(2, n);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int i = 4 * n + 2 * half, at = n % 2 * 2 + half;
        p[n / 2][at] = narrow2<T>(s[i] * weight.x, s[i + 1] * weight.y);
        ds[n / 2][at] =
            narrow2<T>(s[i] * fmaf(weight.x, dp[i], -delta.x), s[i + 1] * fmaf(weight.y, dp[i + 1], -delta.y));
      }
    }
    enqueue_sums<Shape>(dv, p, ptx::make_smem_desc(shared.dout(stage), Shape::panel_bytes));    // dV += P^T dO
    enqueue_sums<Shape>(dk, ds, ptx::make_smem_desc(shared.query(stage), Shape::panel_bytes));  // dK += dS^T Q
    ptx::wgmma_wait<0>();
    ptx::warpgroup_fence_operand(dk);
    ptx::warpgroup_fence_operand(dv);
    free(stage);
  }

  // Sums of several thread blocks in one place are added in a fixed order.
  const auto wait_for_all = [&] { ptx::named_barrier(1 + warpgroup, 128); };
  const std::int64_t slot = Shape::splits_queries ? plan.slot : plan.slot * Shape::consumers + warpgroup;
  const unsigned turn = Shape::splits_queries ? plan.turn * Shape::consumers + warpgroup : plan.turn;
  if constexpr (Walk::is_ordered) parameters.order.acquire(slot, turn, threadIdx.x % 128 == 0, wait_for_all);
  add_key_rows(dk, a.scale, first_key + warp * 16, plan.keys, plan.dkeys, plan.dkey_step);
  add_key_rows(dv, 1.f, first_key + warp * 16, plan.keys, plan.dvalues, plan.dvalue_step);
  if constexpr (Walk::is_ordered) parameters.order.release(slot, turn, threadIdx.x % 128 == 0, wait_for_all);
}

template <class Shape, class Walk>
__global__ void __launch_bounds__(Shape::threads, 1)
    key_gradients_kernel(const __grid_constant__ GradientProblem<typename Shape::T> a,
                         const __grid_constant__ typename Walk::Parameters parameters) {
  extern __shared__ unsigned char memory[];
  __shared__ alignas(16) unsigned char plan_memory[sizeof(typename Walk::Plan)];
  // The swizzle is a function of the address: tiles begin at multiples of 1024.
  const std::uint32_t start = ptx::shared_address(memory), base = (start + 1023) / 1024 * 1024;
  const KeyGradientShared<Shape> shared{base, memory + (base - start)};
  const auto& plan = *reinterpret_cast<const typename Walk::Plan*>(plan_memory);
  unsigned ticket = blockIdx.x;
  if constexpr (Walk::is_ordered) ticket = parameters.order.next_ticket();
  if (threadIdx.x == 0) {
    ::new (static_cast<void*>(plan_memory)) typename Walk::Plan(Walk::plan(a, parameters, ticket));
    shared.initialise();
  }
  __syncthreads();
  if (plan.keys == 0) return;
  if (threadIdx.x < 128) {
    ptx::warpgroup_reg_dealloc<Shape::producer_registers>();
    if (threadIdx.x < 32)
      copy_rows<Shape, Walk>(a, parameters, plan, shared);
    else if (threadIdx.x < 32 * (1 + Shape::statistics_warps))
      load_statistics<Shape, Walk>(a, parameters, plan, shared);
  } else {
    ptx::warpgroup_reg_alloc<Shape::consumer_registers>();
    accumulate_dk_dv<Shape, Walk>(a, parameters, plan, shared);
  }
}

}  // namespace cpnsa::cuda::sm90
