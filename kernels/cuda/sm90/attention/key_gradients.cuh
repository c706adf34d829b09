#pragma once

// Hopper's dK and dV: a thread block has a tile of keys of one KV head and walks the queries that see it, a few
// (query, head) rows per stage (head_rows.cuh). Two consumer warpgroups compute Sᵀ and dPᵀ on WGMMA, whose registers
// are the first operand of dV += Pᵀ dO and dK += dSᵀ Q, so that no score passes through shared memory; the sums stay in
// registers. Of a tile of 128 keys each warpgroup has 64 and both take every stage; a tile of 64 keys belongs to both,
// which take the stages in turn or, where a key's sums are too many for registers, half of the channels each. A
// producer warpgroup fills the ring: one warp copies queries and output gradients, two load the rows' statistics.

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <new>

#include "kernels/cuda/common/ordered_accumulation.cuh"
#include "kernels/cuda/sm90/attention/attention_tile.cuh"

namespace cpnsa::cuda::sm90 {

/// How much the queries of a stage see of the tile's keys.
struct StageVisibility {
  bool all;   ///< whether every query sees all of a warpgroup's 64 keys
  bool some;  ///< whether any query may see one of them
};

/// The keys of the tile that each query of a stage sees, in shared memory.
template <int Heads, int Rows>
struct StageRanges {
  KeyRange visible[Rows / Heads];  ///< of a query

  __device__ StageVisibility of_keys(int first_key) const {
    StageVisibility seen{true, false};
#pragma unroll
    for (const KeyRange range : visible) {
      seen.all &= range.begin <= first_key && range.end >= first_key + 64;
      seen.some |= range.begin < first_key + 64 && range.end > first_key && range.begin < range.end;
    }
    return seen;
  }
  __device__ KeyRange of_row(int row) const {
    return visible[row / Heads];
  }
};

/// The same for any number of heads: of a row, because queries may be many.
template <int Rows>
struct StageRanges<any_heads, Rows> {
  KeyRange visible[Rows];
  KeyRange by_all;   ///< keys that all queries see
  KeyRange by_some;  ///< from the first to the last that some query sees

  __device__ StageVisibility of_keys(int first_key) const {
    return {by_all.begin <= first_key && by_all.end >= first_key + 64,
            by_some.begin < first_key + 64 && by_some.end > first_key};
  }
  __device__ KeyRange of_row(int row) const { return visible[row]; }
};

template <class Element, int Dqk, int Dv, int Heads, int NumKeys>
struct KeyGradientShape {
  using T = Element;
  static constexpr int d_qk = Dqk;
  static constexpr int d_v = Dv;
  static constexpr int heads_per_group = Heads;
  /// Rows per stage: as many as leave registers for the sums.
  static constexpr int rows = TableRow<Dqk, Dv, Heads>::shape.key_gradients.rows;
  using Rows = HeadRows<Heads, rows>;  ///< of a stage
  static constexpr int max_queries = Heads == any_heads ? rows : rows / std::max(1, Heads);
  static constexpr int keys = NumKeys;
  static constexpr bool shares_keys = keys == 64;  ///< of both warpgroups, else each has 64
  static constexpr bool splits_channels = Dqk + Dv > 320;
  static constexpr bool splits_queries = shares_keys && !splits_channels;  ///< the warpgroups take stages in turn
  static_assert(shares_keys || !splits_channels);
  static constexpr int consumers = 2;
  static constexpr int sum_d_qk = splits_channels ? Dqk / consumers : Dqk;  ///< channels of a warpgroup's sums
  static constexpr int sum_d_v = splits_channels ? Dv / consumers : Dv;
  static constexpr int threads = 128 * (consumers + 1);
  static constexpr int statistics_warps = 2;  ///< each loads every second stage
  static constexpr int producer_registers = 40;
  static constexpr int consumer_registers = 232;
  using Keys = PanelTile<T, keys, Dqk>;
  using Values = PanelTile<T, keys, Dv>;
  using Queries = PanelTile<T, rows, Dqk>;
  using Douts = PanelTile<T, rows, Dv>;
  struct Statistics {
    float sum_log2[rows];  ///< log-sum-exp in base 2; infinity for a row that sees nothing
    float weight[rows];
    float delta[rows];
    StageRanges<Heads, rows> keys;
  };
  static constexpr int static_bytes = 768;  ///< at most: the plan and the ticket
  static constexpr int ring_bytes =
      max_shared_bytes - 2 * tile_alignment - static_cast<int>(sizeof(Keys) + sizeof(Values));
  static constexpr int stage_bytes =
      static_cast<int>(sizeof(Queries) + sizeof(Douts) + sizeof(Statistics) + 2 * sizeof(Mbarrier));
  static constexpr int max_stages = std::min(8, ring_bytes / stage_bytes);
  /// An even number where the warpgroups take stages in turn, so that a stage always belongs to the same one.
  static constexpr int stages = splits_queries ? max_stages / 2 * 2 : max_stages;
  static_assert(stages >= 3);
  static_assert(registers_suffice(threads, 128 * consumers, producer_registers, consumer_registers));
};

/// The work of one thread block.
struct KeyPlan {
  int keys;    ///< keys that the tile has; 0 where there is nothing to do
  int stages;  ///< stages of queries, of those that have all their heads in one
  int map;     ///< index in the parameters' key and value maps
  int head;    ///< head coordinate of the tile in them
  int row;     ///< row coordinate of the tile in them
  int group;
  int dkey_step;  ///< floats from key to key
  int dvalue_step;
  float* dkeys;  ///< gradient of the first key
  float* dvalues;
  std::int64_t slot;  ///< of the ordered accumulation
  unsigned turn;      ///< of the first warpgroup in that slot
};

/// The queries that see a thread block's keys, a stage of Rows::queries() at a time. `is_scattered` is false where the
/// queries of a stage are consecutive rows; `is_ordered` says whether thread blocks add to the same gradients.
template <class Walk, class T>
concept QueryWalk = std::derived_from<typename Walk::Plan, KeyPlan> &&
    requires(Walk walk, const Walk& at, const GradientProblem<T>& a, const typename Walk::Parameters& parameters,
             const typename Walk::Plan& plan, unsigned ticket, int query) {
  { Walk::is_scattered } -> std::convertible_to<bool>;
  { Walk::is_ordered } -> std::convertible_to<bool>;
  parameters.queries;  // tensor maps
  parameters.douts;
  parameters.keys[0];
  parameters.values[0];
  { Walk::plan(a, parameters, ticket) } -> std::same_as<typename Walk::Plan>;
  Walk(a, parameters, plan);                        // before the first stage
  walk.next();                                      // moves to the next stage
  { at.row(query) } -> std::same_as<int>;           // local row of a query of the stage; an existing row for each
  { at.visible(query) } -> std::same_as<KeyRange>;  // keys of the tile that it sees; none if the stage lacks it
};

template <class Shape>
struct KeyGradientLayout {
  typename Shape::Keys k;
  typename Shape::Values v;
  typename Shape::Queries q[Shape::stages];
  typename Shape::Douts dout[Shape::stages];
  typename Shape::Statistics statistics[Shape::stages];
  Mbarrier kv_full;
  Mbarrier full[Shape::stages];
  Mbarrier empty[Shape::stages];
};

template <class Shape>
struct KeyGradientMemory : SharedMemory<KeyGradientLayout<Shape>> {
  using Layout = KeyGradientLayout<Shape>;
  // Dynamic shared memory begins behind the static one, at the next multiple of the alignment.
  static_assert(Shape::static_bytes <= tile_alignment &&
                SharedMemory<Layout>::bytes + tile_alignment <= max_shared_bytes);

  __device__ std::uint32_t k(int panel = 0) const {
    return this->at(offsetof(Layout, k), panel, Shape::Keys::panel_bytes);
  }
  __device__ std::uint32_t v(int panel = 0) const {
    return this->at(offsetof(Layout, v), panel, Shape::Values::panel_bytes);
  }
  __device__ std::uint32_t q(int stage, int panel = 0) const {
    return this->at(offsetof(Layout, q), stage, sizeof(typename Shape::Queries)) + panel * Shape::Queries::panel_bytes;
  }
  __device__ std::uint32_t dout(int stage, int panel = 0) const {
    return this->at(offsetof(Layout, dout), stage, sizeof(typename Shape::Douts)) + panel * Shape::Douts::panel_bytes;
  }
  __device__ std::uint32_t kv_full() const { return this->barrier(offsetof(Layout, kv_full)); }
  __device__ std::uint32_t full(int stage) const { return this->barrier(offsetof(Layout, full), stage); }
  __device__ std::uint32_t empty(int stage) const { return this->barrier(offsetof(Layout, empty), stage); }

  __device__ void initialise() const {
    ptx::mbarrier_init(kv_full(), 1);
    for (int stage = 0; stage < Shape::stages; ++stage) {
      ptx::mbarrier_init(full(stage), 2);  // the copies, and the statistics
      ptx::mbarrier_init(empty(stage), Shape::splits_queries ? 4 : 4 * Shape::consumers);  // warps
    }
    ptx::fence_mbarrier_init();
  }
};

/// The copying warp: loads the tile's keys and values, then queries and output gradients of every stage.
template <class Shape, class Walk>
__device__ __forceinline__ void copy_rows(const GradientProblem<typename Shape::T>& a,
                                          const typename Walk::Parameters& parameters, const typename Walk::Plan& plan,
                                          const KeyGradientMemory<Shape>& smem) {
  const int lane = threadIdx.x % 32;
  if (lane == 0) {
    const std::uint32_t kv_full = smem.kv_full();
    ptx::mbarrier_arrive_expect_tx(kv_full, sizeof(smem->k) + sizeof(smem->v));
    for (int panel = 0; panel < Shape::Keys::num_panels; ++panel)
      ptx::tma_load(smem.k(panel), &parameters.keys[plan.map], kv_full, panel * panel_channels, plan.head, plan.row);
    for (int panel = 0; panel < Shape::Values::num_panels; ++panel)
      ptx::tma_load(smem.v(panel), &parameters.values[plan.map], kv_full, panel * panel_channels, plan.head, plan.row);
  }
  Walk walk(a, parameters, plan);
  RingPosition<Shape::stages> ring;
  const typename Shape::Rows rows(a.heads_per_group);
  const int copies = Walk::is_scattered ? rows.queries() : 1;
  constexpr int max_copies_per_lane = Walk::is_scattered ? (Shape::max_queries + 31) / 32 : 1;
  int part = rows.parts() - 1;  // of the heads of a query
#pragma unroll 1
  for (int count = plan.stages; count > 0; --count, ring.advance()) {
    if (++part == rows.parts()) {
      part = 0;
      walk.next();
    }
    int row[max_copies_per_lane];
#pragma unroll
    for (int i = 0; i < max_copies_per_lane; ++i) row[i] = lane + 32 * i < copies ? walk.row(lane + 32 * i) : 0;
    ptx::mbarrier_wait(smem.empty(ring.stage), ring.phase ^ 1);
    const std::uint32_t full = smem.full(ring.stage);
    if (lane == 0)
      ptx::mbarrier_arrive_expect_tx(
          full, rows.num_rows() * swizzle_bytes * (Shape::Queries::num_panels + Shape::Douts::num_panels));
    __syncwarp();
    const int head = rows.first_head(plan.group, part);
#pragma unroll
    for (int i = 0; i < max_copies_per_lane; ++i) {
      if (lane + 32 * i >= copies) break;
      const int to = (lane + 32 * i) * rows.heads() * swizzle_bytes;
      for (int panel = 0; panel < Shape::Queries::num_panels; ++panel)
        ptx::tma_load(smem.q(ring.stage, panel) + to, &parameters.queries, full, panel * panel_channels, head, row[i]);
      for (int panel = 0; panel < Shape::Douts::num_panels; ++panel)
        ptx::tma_load(smem.dout(ring.stage, panel) + to, &parameters.douts, full, panel * panel_channels, head, row[i]);
    }
  }
}

/// One of the two statistics warps: loads every second stage's statistics. Where the warpgroups take stages in turn,
/// these stages belong to one warpgroup, which frees them in order: the warp is never so far ahead that a parity stands
/// for another phase.
template <class Shape, class Walk>
__device__ __forceinline__ void load_statistics(const GradientProblem<typename Shape::T>& a,
                                                const typename Walk::Parameters& parameters,
                                                const typename Walk::Plan& plan, const KeyGradientMemory<Shape>& smem) {
  const int lane = threadIdx.x % 32;
  Walk walk(a, parameters, plan);
  RingPosition<Shape::stages> ring;
  const typename Shape::Rows rows(a.heads_per_group);
  int part = rows.parts() - 1;  // of the heads of a query
  int stages_to_skip = static_cast<int>(threadIdx.x) / 32 - 1;
#pragma unroll 1
  for (int count = plan.stages; count > 0; --count, ring.advance()) {
    if (++part == rows.parts()) {
      part = 0;
      walk.next();
    }
    if (stages_to_skip-- > 0) continue;
    stages_to_skip = Shape::statistics_warps - 1;
    float values[Shape::rows / 32][3];
    KeyRange ranges[Shape::rows / 32];
#pragma unroll
    for (int i = 0; i < Shape::rows / 32; ++i) {
      const int row = lane + i * 32, query = rows.query(row), head = rows.head(row);
      const bool exists = row < rows.num_rows() && rows.has_head(part, head);
      ranges[i] = exists ? walk.visible(query) : KeyRange{0, 0};
      const bool sees = ranges[i].begin < ranges[i].end;
      const std::int64_t head_row =
          static_cast<std::int64_t>(walk.row(query)) * a.num_q_heads + rows.first_head(plan.group, part) + head;
      const float sum = sees ? a.log_sum_exp[head_row] : -INFINITY;
      values[i][0] = sum == -INFINITY ? INFINITY : sum * log2_e;  // 2^(s - infinity) is 0
      values[i][1] = sees ? a.weights[head_row] : 0.f;
      values[i][2] = sees ? a.deltas[head_row] : 0.f;
    }
    KeyRange of_query{0, 0}, by_all{0, Shape::keys}, by_some{Shape::keys, 0};
    if constexpr (!Shape::Rows::has_padding) {
      if (lane < Shape::max_queries) of_query = walk.visible(lane);
    } else {
#pragma unroll
      for (int i = 0; i < Shape::rows / 32; ++i) {
        if (lane + i * 32 >= rows.num_rows()) continue;  // padding has no queries
        by_all = {max(by_all.begin, ranges[i].begin), min(by_all.end, ranges[i].end)};
        if (ranges[i].begin < ranges[i].end)
          by_some = {min(by_some.begin, ranges[i].begin), max(by_some.end, ranges[i].end)};
      }
      by_all = {__reduce_max_sync(0xffffffffu, by_all.begin), __reduce_min_sync(0xffffffffu, by_all.end)};
      by_some = {__reduce_min_sync(0xffffffffu, by_some.begin), __reduce_max_sync(0xffffffffu, by_some.end)};
    }
    ptx::mbarrier_wait(smem.empty(ring.stage), ring.phase ^ 1);
    typename Shape::Statistics& to = smem->statistics[ring.stage];
#pragma unroll
    for (int i = 0; i < Shape::rows / 32; ++i) {
      to.sum_log2[lane + i * 32] = values[i][0];
      to.weight[lane + i * 32] = values[i][1];
      to.delta[lane + i * 32] = values[i][2];
    }
    if constexpr (!Shape::Rows::has_padding) {
      if (lane < Shape::max_queries) to.keys.visible[lane] = of_query;
    } else {
#pragma unroll
      for (int i = 0; i < Shape::rows / 32; ++i) to.keys.visible[lane + i * 32] = ranges[i];
      if (lane == 0) to.keys.by_all = by_all, to.keys.by_some = by_some;
    }
    __syncwarp();
    if (lane == 0) ptx::mbarrier_arrive(smem.full(ring.stage));
  }
}

/// Enqueues d = keys rowsᵀ, of a warpgroup's 64 keys of a tile of type Keys and a stage's rows of type Rows.
template <class Shape, class Keys, class Rows>
__device__ __forceinline__ void enqueue_transposed(float (&d)[Shape::rows / 2], std::uint64_t keys,
                                                   std::uint64_t rows) {
  ptx::warpgroup_fence_operand(d);
  ptx::wgmma_fence();
#pragma unroll
  for (int step = 0; step < Rows::num_panels * panel_channels / 16; ++step)
    ptx::wgmma_ss(typename Shape::T{}, d, ptx::advance_desc(keys, Keys::channel_offset(step)),
                  ptx::advance_desc(rows, Rows::channel_offset(step)), step > 0);
  ptx::wgmma_commit();
}

/// Enqueues sums += scores rows, of a stage's rows of type Rows.
template <class Shape, class Rows, int Values>
__device__ __forceinline__ void enqueue_sums(float (&sums)[Values], const std::uint32_t (&scores)[Shape::rows / 16][4],
                                             std::uint64_t rows) {
  ptx::warpgroup_fence_operand(sums);
  ptx::wgmma_fence();
#pragma unroll
  for (int step = 0; step < Shape::rows / 16; ++step)
    ptx::wgmma_rs(typename Shape::T{}, sums, scores[step], ptx::advance_desc(rows, Rows::row_offset(step)));
  ptx::wgmma_commit();
}

/// Adds the sums times `factor` to a warp's 16 keys of `dim` channels in global memory, as far as the tile has them.
template <int Values>
__device__ __forceinline__ void add_key_rows(const float (&sums)[Values], float factor, int first_key, int keys,
                                             float* first, int step, int dim) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int key = first_key + lane / 4 + 8 * half;
    if (key >= keys) continue;
    float* const row = first + static_cast<std::int64_t>(key) * step + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < Values / 4; ++n)
      if (n * 8 < dim) ptx::red_add(row + n * 8, sums[4 * n + 2 * half] * factor, sums[4 * n + 2 * half + 1] * factor);
  }
}

template <class Shape, class Walk>
__device__ __forceinline__ void accumulate_dk_dv(const GradientProblem<typename Shape::T>& a,
                                                 const typename Walk::Parameters& parameters,
                                                 const typename Walk::Plan& plan,
                                                 const KeyGradientMemory<Shape>& smem) {
  using T = typename Shape::T;
  const int warpgroup = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const int first_key = Shape::shares_keys ? 0 : warpgroup * 64;
  const int first_qk = Shape::splits_channels ? warpgroup * Shape::sum_d_qk : 0,
            first_v = Shape::splits_channels ? warpgroup * Shape::sum_d_v : 0;
  const std::uint64_t k = ptx::make_smem_desc(smem.k() + first_key * swizzle_bytes),
                      v = ptx::make_smem_desc(smem.v() + first_key * swizzle_bytes);
  const auto release = [&](int stage) {
    __syncwarp();
    if (lane == 0) ptx::mbarrier_arrive(smem.empty(stage));
  };
  float dk[Shape::sum_d_qk / 2] = {}, dv[Shape::sum_d_v / 2] = {};
  ptx::mbarrier_wait(smem.kv_full(), 0);
  RingPosition<Shape::stages> ring;
  int count = plan.stages;
  if (Shape::splits_queries && warpgroup == 1) {
    ring.advance();
    --count;
  }
#pragma unroll 1
  for (; count > 0; count -= Shape::splits_queries ? Shape::consumers : 1) {
    const int stage = ring.stage;
    ptx::mbarrier_wait(smem.full(stage), ring.phase);
    ring.advance();
    if constexpr (Shape::splits_queries) ring.advance();
    const typename Shape::Statistics& statistics = smem->statistics[stage];
    const StageVisibility seen = statistics.keys.of_keys(first_key);
    if (!seen.some) {
      release(stage);
      continue;
    }
    float s[Shape::rows / 2], dp[Shape::rows / 2];
    std::uint32_t p[Shape::rows / 16][4], ds[Shape::rows / 16][4];
    enqueue_transposed<Shape, typename Shape::Keys, typename Shape::Queries>(
        s, k, ptx::make_smem_desc(smem.q(stage)));  // Sᵀ = K Qᵀ
    enqueue_transposed<Shape, typename Shape::Values, typename Shape::Douts>(
        dp, v, ptx::make_smem_desc(smem.dout(stage)));  // dPᵀ = V dOᵀ
    ptx::wgmma_wait<1>();
    ptx::warpgroup_fence_operand(s);

    const auto pair = [&](const float* of_rows, int n) {  // of the lane's two rows of eight
      return *reinterpret_cast<const float2*>(of_rows + lane % 4 * 2 + n * 8);
    };
#pragma unroll
    for (int n = 0; n < Shape::rows / 8; ++n) {
      const float2 sum = pair(statistics.sum_log2, n);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        s[4 * n + i] = ptx::exp2_approximate(fmaf(s[4 * n + i], a.scale_log2, -(i % 2 ? sum.y : sum.x)));
    }
    if (!seen.all) {
#pragma unroll
      for (int n = 0; n < Shape::rows / 8; ++n) {
        const int row = n * 8 + lane % 4 * 2;
        const KeyRange of_rows[2] = {statistics.keys.of_row(row), statistics.keys.of_row(row + 1)};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const KeyRange range = of_rows[i % 2];
          const int at = first_key + warp * 16 + lane / 4 + i / 2 * 8;
          if (at < range.begin || at >= range.end) s[4 * n + i] = 0.f;
        }
      }
    }
    ptx::wgmma_wait<0>();
    ptx::warpgroup_fence_operand(dp);
#pragma unroll
    for (int n = 0; n < Shape::rows / 8; ++n) {
      const float2 weight = pair(statistics.weight, n), delta = pair(statistics.delta, n);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int i = 4 * n + 2 * half, at = n % 2 * 2 + half;
        p[n / 2][at] = narrow2<T>(s[i] * weight.x, s[i + 1] * weight.y);
        ds[n / 2][at] =
            narrow2<T>(s[i] * fmaf(weight.x, dp[i], -delta.x), s[i + 1] * fmaf(weight.y, dp[i + 1], -delta.y));
      }
    }
    enqueue_sums<Shape, typename Shape::Douts>(
        dv, p,
        ptx::make_smem_desc(smem.dout(stage, first_v / panel_channels), Shape::Douts::panel_bytes));  // dV += Pᵀ dO
    enqueue_sums<Shape, typename Shape::Queries>(
        dk, ds,
        ptx::make_smem_desc(smem.q(stage, first_qk / panel_channels), Shape::Queries::panel_bytes));  // dK += dSᵀ Q
    ptx::wgmma_wait<0>();
    ptx::warpgroup_fence_operand(dk);
    ptx::warpgroup_fence_operand(dv);
    release(stage);
  }

  // Thread blocks that add to the same gradients do it in a fixed order.
  const auto wait_for_all = [&] { ptx::named_barrier(1 + warpgroup, 128); };
  const std::int64_t slot = Shape::shares_keys ? plan.slot : plan.slot * Shape::consumers + warpgroup;
  const unsigned turn = Shape::shares_keys ? plan.turn * Shape::consumers + warpgroup : plan.turn;
  if constexpr (Walk::is_ordered) parameters.order.acquire(slot, turn, threadIdx.x % 128 == 0, wait_for_all);
  add_key_rows(dk, a.scale, first_key + warp * 16, plan.keys, plan.dkeys + first_qk, plan.dkey_step,
               layer_d_qk<Shape>(a) - first_qk);
  add_key_rows(dv, 1.f, first_key + warp * 16, plan.keys, plan.dvalues + first_v, plan.dvalue_step,
               layer_d_v<Shape>(a) - first_v);
  if constexpr (Walk::is_ordered) parameters.order.release(slot, turn, threadIdx.x % 128 == 0, wait_for_all);
}

template <class Shape, QueryWalk<typename Shape::T> Walk>
__global__ void __launch_bounds__(Shape::threads, 1)
    key_gradients_kernel(const __grid_constant__ GradientProblem<typename Shape::T> a,
                         const __grid_constant__ typename Walk::Parameters parameters) {
  __shared__ alignas(16) unsigned char plan_memory[sizeof(typename Walk::Plan)];
  const KeyGradientMemory<Shape> smem{shared_memory<KeyGradientLayout<Shape>>()};
  const auto& plan = *reinterpret_cast<const typename Walk::Plan*>(plan_memory);
  unsigned ticket = blockIdx.x;
  if constexpr (Walk::is_ordered) ticket = parameters.order.next_ticket();
  if (threadIdx.x == 0) {
    auto* const made = ::new (static_cast<void*>(plan_memory)) typename Walk::Plan(Walk::plan(a, parameters, ticket));
    made->stages *= typename Shape::Rows(a.heads_per_group).parts();  // a query is walked once for each part
    smem.initialise();
  }
  for (int stage = 0; stage < Shape::stages; ++stage) {
    zero_padding<Shape::rows>(smem->q[stage], typename Shape::Rows(a.heads_per_group));
    zero_padding<Shape::rows>(smem->dout[stage], typename Shape::Rows(a.heads_per_group));
  }
  __syncthreads();
  if (plan.keys == 0) return;
  if (threadIdx.x < 128) {
    ptx::warpgroup_reg_dealloc<Shape::producer_registers>();
    if (threadIdx.x < 32)
      copy_rows<Shape, Walk>(a, parameters, plan, smem);
    else if (threadIdx.x < 32 * (1 + Shape::statistics_warps))
      load_statistics<Shape, Walk>(a, parameters, plan, smem);
  } else {
    ptx::warpgroup_reg_alloc<Shape::consumer_registers>();
    accumulate_dk_dv<Shape, Walk>(a, parameters, plan, smem);
  }
}

}  // namespace cpnsa::cuda::sm90
