// Importance and top n for 16 query heads per KV head, l 32, s 16, m 64: the score of block j is 2 (P[4j] + P[4j+1] +
// P[4j+2]) + P[4j-1] + P[4j+3], with P the probabilities of summaries summed over the heads of the group. The products
// are Sᵀ = K Qᵀ, of 64 summaries and 8 queries per warpgroup. Queries are stored head after head, 8 queries of each, so
// that the 64 values of a lane are all 16 heads of two queries and two summaries, and the lane sums over heads alone.
// The sums go through shared memory, where a warp then finds whole rows of two queries, one block per lane; the best so
// far are in registers, one per lane too.

#include "kernels/cuda/common/summary_rule.cuh"
#include "kernels/cuda/sm90/attention/attention_launch.cuh"
#include "kernels/cuda/sm90/run_op.hpp"
#include "kernels/cuda/sm90/selection/select_blocks_any_heads.hpp"
#include "kernels/cuda/sm90/selection/select_blocks_plan.hpp"
#include "kernels/cuda/sm90/selection/top_blocks.cuh"

namespace cpnsa::cuda::sm90 {
namespace {

template <class Element, int Dqk, int Dv, int Heads>
struct SelectShape {
  using T = Element;
  static constexpr auto table = TableRow<Dqk, Dv, Heads>::shape.select_blocks;
  static constexpr int d_qk = Dqk;
  static constexpr int heads_per_group = Heads;
  static constexpr int queries_per_warpgroup = 8;
  static constexpr int queries = select_blocks_queries(TableRow<Dqk, Dv, Heads>::shape, Heads);
  static constexpr int consumers = table.warpgroups;
  static constexpr int columns = queries_per_warpgroup * heads_per_group;  ///< of the product of a warpgroup
  static constexpr int keys = 64;                                          ///< summaries per stage
  static constexpr int blocks = keys / 4;                                  ///< blocks that a stage completes
  static constexpr int stages = table.stages;
  static constexpr int threads = 128 * (consumers + 1);
  static constexpr int producer_registers = 24;
  static constexpr int consumer_registers = table.consumer_registers;
  using Queries = PanelTile<T, queries * heads_per_group, Dqk>;
  using Keys = PanelTile<T, keys, Dqk>;
  /// Padded, so that rows that four neighbouring lanes read or write begin in different banks.
  struct Sums {
    float base[queries_per_warpgroup / 2][2 * heads_per_group + 4];  ///< log-sum-exps in base 2 of two queries, less 1
    float scores[2][queries_per_warpgroup][2 * keys + 4];            ///< two buffers of a query's sums of two stages
  };
  static_assert(sizeof(Sums::base) % 16 == 0 && sizeof(Sums::scores[0][0]) % 16 == 0);
  static_assert(registers_suffice(threads, 128 * consumers, producer_registers, consumer_registers));
};

template <class Shape>
struct SelectLayout {
  typename Shape::Queries q;  ///< `columns` rows per consumer warpgroup
  typename Shape::Keys k[Shape::stages];
  typename Shape::Sums sums[Shape::consumers];
  Mbarrier q_full[Shape::consumers];
  Mbarrier q_empty[Shape::consumers];
  Mbarrier k_full[Shape::stages];
  Mbarrier k_empty[Shape::stages];
};

template <class Shape>
struct SelectMemory : SharedMemory<SelectLayout<Shape>> {
  using Layout = SelectLayout<Shape>;
  static_assert(SharedMemory<Layout>::bytes <= max_shared_bytes);

  /// The rows of a consumer warpgroup in a panel of q.
  __device__ std::uint32_t q(int warpgroup, int panel = 0) const {
    return this->at(offsetof(Layout, q), warpgroup, Shape::columns * swizzle_bytes) +
           panel * Shape::Queries::panel_bytes;
  }
  __device__ std::uint32_t k(int stage, int panel = 0) const {
    return this->at(offsetof(Layout, k), stage, sizeof(typename Shape::Keys)) + panel * Shape::Keys::panel_bytes;
  }
  __device__ std::uint32_t q_full(int warpgroup) const { return this->barrier(offsetof(Layout, q_full), warpgroup); }
  __device__ std::uint32_t q_empty(int warpgroup) const { return this->barrier(offsetof(Layout, q_empty), warpgroup); }
  __device__ std::uint32_t k_full(int stage) const { return this->barrier(offsetof(Layout, k_full), stage); }
  __device__ std::uint32_t k_empty(int stage) const { return this->barrier(offsetof(Layout, k_empty), stage); }

  __device__ void initialise() const {
    for (int warpgroup = 0; warpgroup < Shape::consumers; ++warpgroup) {
      ptx::mbarrier_init(q_full(warpgroup), 1);
      ptx::mbarrier_init(q_empty(warpgroup), 1);
    }
    for (int stage = 0; stage < Shape::stages; ++stage) {
      ptx::mbarrier_init(k_full(stage), 1);
      ptx::mbarrier_init(k_empty(stage), Shape::consumers);
    }
    ptx::fence_mbarrier_init();
  }
};

template <class Shape>
struct SelectArguments {
  AttentionProblem<typename Shape::T> problem;
  WorkList work;  ///< items are dealt out, not by ticket, for which the producer has no registers
  SummaryRule summaries;
  SelectionRule selection;
  std::int32_t* selected;

  /// Stages of summaries that the last query of the tile needs.
  __device__ int stages(const QueryTile& tile, int position) const {
    const int last = position + tile.rows - 1;
    if (!selection.chooses(last) || selection.num_scored() == 0) return 0;
    return (selection.candidates_end(last) + Shape::blocks - 1) / Shape::blocks;
  }
};

template <class Shape>
__device__ __forceinline__ void producer_loop(const SelectArguments<Shape>& a, const CUtensorMap& queries,
                                              const CUtensorMap& keys, const SelectMemory<Shape>& smem) {
  RingPosition<Shape::stages> ring;
  int item_phase = 1;
  for (int item = blockIdx.x; item < a.work.count(); item += gridDim.x) {
    const QueryTile tile = a.problem.tiles[tile_of(a.work, item)];
    const Segment& segment = a.problem.segments[tile.segment];
    const int group = item % a.work.num_kv_heads, summary = static_cast<int>(segment.summary);
    const int stages = a.stages(tile, static_cast<int>(segment.position + tile.row - segment.row));
    if (stages == 0) continue;
    const auto load_queries = [&] {
      for (int warpgroup = 0; warpgroup < Shape::consumers; ++warpgroup) {
        const std::uint32_t full = smem.q_full(warpgroup);
        ptx::mbarrier_wait(smem.q_empty(warpgroup), item_phase);
        ptx::mbarrier_arrive_expect_tx(full, static_cast<int>(sizeof(smem->q)) / Shape::consumers);
        for (int panel = 0; panel < Shape::Queries::num_panels; ++panel)
          ptx::tma_load(smem.q(warpgroup, panel), &queries, full, panel * panel_channels,
                        static_cast<int>(tile.row) + warpgroup * Shape::queries_per_warpgroup,
                        group * Shape::heads_per_group);
      }
      item_phase ^= 1;
    };
    // The first summaries are loaded while the last item's queries are in use.
    const int ahead = min(stages, Shape::stages - 1);
    for (int index = 0; index < stages; ++index, ring.advance()) {
      if (index == ahead) load_queries();
      const std::uint32_t full = smem.k_full(ring.stage);
      ptx::mbarrier_wait(smem.k_empty(ring.stage), ring.phase ^ 1);
      ptx::mbarrier_arrive_expect_tx(full, sizeof(typename Shape::Keys));
      for (int panel = 0; panel < Shape::Keys::num_panels; ++panel)
        ptx::tma_load(smem.k(ring.stage, panel), &keys, full, panel * panel_channels, group,
                      summary + index * Shape::keys);
    }
    if (ahead == stages) load_queries();
  }
}

/// Enqueues Sᵀ = K Qᵀ of 64 summaries and the queries of a warpgroup.
template <class Shape>
__device__ __forceinline__ void enqueue_products(float (&s)[Shape::columns / 2], std::uint64_t keys,
                                                 std::uint64_t queries) {
  ptx::warpgroup_fence_operand(s);
  ptx::wgmma_fence();
#pragma unroll
  for (int step = 0; step < Shape::d_qk / 16; ++step)  // Sᵀ = K Qᵀ
    ptx::wgmma_ss(typename Shape::T{}, s, ptx::advance_desc(keys, Shape::Keys::channel_offset(step)),
                  ptx::advance_desc(queries, Shape::Queries::channel_offset(step)), step > 0);
  ptx::wgmma_commit();
}

/// Twice the probabilities of a lane's products, summed over heads: sums[half][e] belongs to summary lane / 4 + 8 half
/// of the warp's 16 and to query 2 (lane % 4) + e.
template <class Shape>
__device__ __forceinline__ void sum_over_heads(const float (&s)[Shape::columns / 2], const typename Shape::Sums& shared,
                                               float scale, float (&sums)[2][2]) {
  const float4* const own_bases = reinterpret_cast<const float4*>(shared.base[threadIdx.x % 4]);
#pragma unroll
  for (int pair = 0; pair < Shape::heads_per_group / 2; ++pair) {
    const float4 of_pair = own_bases[pair];
    const float base[2][2] = {{of_pair.x, of_pair.y}, {of_pair.z, of_pair.w}};
#pragma unroll
    for (int head = 0; head < 2; ++head)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float p = ptx::exp2_approximate(fmaf(s[8 * pair + 4 * head + i], scale, -base[head][i % 2]));
        sums[i / 2][i % 2] = pair + head == 0 ? p : sums[i / 2][i % 2] + p;
      }
  }
}

template <class Shape>
__device__ __forceinline__ void consumer_loop(const SelectArguments<Shape>& a, const SelectMemory<Shape>& smem) {
  const int warpgroup = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const bool is_leader = threadIdx.x % 128 == 0;
  const auto wait_for_all = [&] { ptx::named_barrier(1 + warpgroup, 128); };
  const std::uint64_t queries = ptx::make_smem_desc(smem.q(warpgroup));
  typename Shape::Sums& shared = smem->sums[warpgroup];
  const int first_query = warpgroup * Shape::queries_per_warpgroup, own_query = first_query + 2 * warp;  // in the tile
  RingPosition<Shape::stages> ring;
  int item_phase = 0;
  for (int item = blockIdx.x; item < a.work.count(); item += gridDim.x) {
    const QueryTile tile = a.problem.tiles[tile_of(a.work, item)];
    const Segment& segment = a.problem.segments[tile.segment];
    const int group = item % a.work.num_kv_heads, start = static_cast<int>(segment.position + tile.row - segment.row);
    const int stages = a.stages(tile, start);
    RegisterTopBlocks<1> top[2];
    if (stages > 0) {
      {
        const int query = threadIdx.x % 128 / Shape::heads_per_group, head = threadIdx.x % Shape::heads_per_group;
        float base = 0.f;
        if (first_query + query < tile.rows)
          base = a.problem.log_sum_exp[(tile.row + first_query + query) * a.problem.num_q_heads +
                                       group * Shape::heads_per_group + head];
        shared.base[query / 2][head * 2 + query % 2] = base * log2_e - 1.f;  // twice the probability
      }
      const int column = lane % 4 * 2;
      const int visible[2] = {a.summaries.visible(start + first_query + column),
                              a.summaries.visible(start + first_query + column + 1)};
      wait_for_all();
      ptx::mbarrier_wait(smem.q_full(warpgroup), item_phase);
      item_phase ^= 1;
      int candidates_end[2];  // blocks, for the warp's two queries; 0 for a query that does not choose
      for (int e = 0; e < 2; ++e) {
        const int position = start + own_query + e;
        const bool chooses = own_query + e < tile.rows && a.selection.chooses(position);
        candidates_end[e] = chooses ? a.selection.candidates_end(position) : 0;
      }
      float carry[2] = {};
      constexpr int score_row = sizeof(Shape::Sums::scores[0][0]) / sizeof(float);
      float* scores = shared.scores[0][0];
      int other = sizeof(Shape::Sums::scores[0]) / sizeof(float);  // from this buffer to the other
      for (int index = 0; index < stages; ++index) {
        float s[Shape::columns / 2];
        ptx::mbarrier_wait(smem.k_full(ring.stage), ring.phase);
        enqueue_products<Shape>(s, ptx::make_smem_desc(smem.k(ring.stage)), queries);
        ptx::wgmma_wait<0>();
        ptx::warpgroup_fence_operand(s);
        if (is_leader) {
          ptx::mbarrier_arrive(smem.k_empty(ring.stage));
          if (index == stages - 1) ptx::mbarrier_arrive(smem.q_empty(warpgroup));
        }
        ring.advance();
        float sums[2][2];
        sum_over_heads<Shape>(s, shared, a.problem.scale_log2, sums);
        const int row = index % 2 * Shape::keys + 16 * warp + lane / 4, summary = index / 2 * (2 * Shape::keys) + row;
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int e = 0; e < 2; ++e)
            scores[(column + e) * score_row + row + 8 * half] = summary + 8 * half < visible[e] ? sums[half][e] : 0.f;
        if (index % 2 == 0 && index < stages - 1) continue;
        wait_for_all();
        const int last = index / 2 * (2 * Shape::blocks) + 31, block = last - lane;
        unsigned keys[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float score = block_score(scores + (2 * warp + e) * score_row, carry[e]);
          keys[e] = RegisterTopBlocks<1>::key(score, block >= a.selection.init_blocks && block < candidates_end[e]);
        }
        RegisterTopBlocks<1>::take(top, keys, last, a.selection.num_scored());
        // The next sums go to the other buffer; this one is written again after a barrier that follows all reads of it.
        scores += other;
        other = -other;
      }
    }
    for (int i = 0; i < 2; ++i)
      if (own_query + i < tile.rows)
        top[i].write(
            a.selected + ((tile.row + own_query + i) * a.problem.num_kv_heads + group) * a.selection.select_count,
            a.selection, start + own_query + i);
  }
}

template <class Shape>
__global__ void __launch_bounds__(Shape::threads, 1)
    select_blocks_kernel(SelectArguments<Shape> a, const __grid_constant__ CUtensorMap queries,
                         const __grid_constant__ CUtensorMap keys) {
  const SelectMemory<Shape> smem{shared_memory<SelectLayout<Shape>>()};
  if (threadIdx.x == 0) smem.initialise();
  __syncthreads();
  if (threadIdx.x < 128) {
    ptx::warpgroup_reg_dealloc<Shape::producer_registers>();
    if (threadIdx.x == 0) producer_loop<Shape>(a, queries, keys, smem);
  } else {
    ptx::warpgroup_reg_alloc<Shape::consumer_registers>();
    consumer_loop<Shape>(a, smem);
  }
}

}  // namespace

/// Returns whether the kernel of this file serves the op.
static bool serves_own(const SelectBlocks& a) {
  const Config& config = *a.config;
  return index_of(config) >= 0 && serves(config, a.dtype) && config.compress_block == 32 &&
         config.compress_stride == 16 && config.select_block == tokens_per_block &&
         SelectPlan::num_scored(config) <= 32;
}

template <>
bool serves(const SelectBlocks& a) {
  return serves_own(a) || (serves(*a.config, a.dtype) && any_heads_select_queries(*a.config) > 0);
}

template <>
void run_op(const SelectBlocks& a, const Gpu& gpu, cudaStream_t stream) {
  if (!serves(a)) refuse_shape(*a.config);
  if (!serves_own(a)) return select_blocks_any_heads(a, gpu, stream);
  visit_shape<SelectShape>(a, [&]<class Shape>(std::type_identity<Shape>) {
    using T = typename Shape::T;
    const Config& config = *a.config;
    const CudaSegmentSchedule& schedule = cuda_schedule(a.queries);
    const ListView<QueryTile> tiles = schedule.tiles(Shape::queries);
    if (tiles.count == 0) return;
    std::int64_t summaries = 1;
    for (const Segment& segment : schedule.segments)
      summaries = std::max(summaries, segment.summary + segment.summaries);
    SelectArguments<Shape> arguments{attention_problem<T>(a, schedule, tiles),
                                     {static_cast<int>(tiles.count), static_cast<int>(config.num_kv_heads), nullptr},
                                     SummaryRule(config),
                                     SelectionRule(config),
                                     a.selected};
    arguments.problem.log_sum_exp = static_cast<float*>(const_cast<void*>(a.log_sum_exp));
    const TensorLayout by_heads{{Shape::d_qk, schedule.rows, config.num_q_heads},
                                {Shape::d_qk * config.num_q_heads, Shape::d_qk},
                                {Shape::queries_per_warpgroup, Shape::heads_per_group}};
    const CUtensorMap queries = make_tensor_map(a.q, a.dtype, by_heads);
    const CUtensorMap keys =
        make_tensor_map(a.keys, a.dtype, rows_layout(summaries, config.num_kv_heads, Shape::d_qk, Shape::keys, 1));
    const std::size_t bytes = SharedMemory<SelectLayout<Shape>>::bytes;
    allow_shared_memory(select_blocks_kernel<Shape>, bytes);
    const int blocks = std::min(gpu.multiprocessors, arguments.work.tiles * arguments.work.num_kv_heads);
    select_blocks_kernel<Shape><<<blocks, Shape::threads, bytes, stream>>>(arguments, queries, keys);
    check_launch("select_blocks");
  });
}

}  // namespace cpnsa::cuda::sm90
