// Importance and top n for l 32, s 16, m 64 and 16 heads per group: block j's score is 2 (P[4j] + P[4j+1] + P[4j+2]) +
// P[4j-1] + P[4j+3]. Products are S^T = K Q^T, of 64 summaries and 8 queries a warpgroup. In shared memory the queries
// come head after head, 8 queries of each, so that a lane's 64 values are all 16 heads of two queries and two
// summaries: the sum over heads is its own. The sums cross shared memory, in which a warp then finds two queries' whole
// rows, a block a lane; the best so far are kept one a lane too.

#include "kernels/cuda/common/summary_rule.cuh"
#include "kernels/cuda/sm90/attention/attention_launch.cuh"
#include "kernels/cuda/sm90/selection/top_blocks.cuh"
#include "kernels/cuda/sm90/stages.hpp"

namespace cpnsa::cuda::sm90 {
namespace {

template <class Element, int Dqk, int Dv, int Heads>
struct SelectShape {
  using T = Element;
  static constexpr int d_qk = Dqk;
  static constexpr auto table = TableRow<Dqk, Dv, Heads>::shape.select_blocks;
  static constexpr int heads_per_group = Heads;
  static constexpr int queries = table.queries;
  static constexpr int own_queries = 8;  ///< of a warpgroup
  static constexpr int consumers = queries / own_queries;
  static constexpr int columns = own_queries * heads_per_group;  ///< of a warpgroup's product
  static constexpr int keys = 64;                                ///< summaries of a stage
  static constexpr int blocks = keys / 4;                        ///< that a stage completes
  static constexpr int stages = table.stages;
  static constexpr int threads = 128 * (consumers + 1);
  static constexpr int producer_registers = 24;
  static constexpr int consumer_registers = table.consumer_registers;
  static constexpr int query_bytes = queries * heads_per_group * Dqk * 2;
  static constexpr int own_query_bytes = columns * 128;  ///< a warpgroup's, of 64 channels
  static constexpr int query_panel_bytes = consumers * own_query_bytes;
  static constexpr int key_bytes = keys * Dqk * 2;
  static constexpr int panel_bytes = keys * 128;
  // Rows that four lanes beside each other read or write begin in different banks.
  static constexpr int base_row = 2 * heads_per_group + 4;  ///< log-sum-exps of two queries
  static constexpr int score_row = 2 * keys + 4;            ///< a query's sums of two stages
  static constexpr int base_floats = own_queries / 2 * base_row;
  static constexpr int score_floats = own_queries * score_row;
  static constexpr int floats = base_floats + 2 * score_floats;  ///< of a warpgroup
  static constexpr int floats_at = query_bytes + stages * key_bytes;
  static constexpr int barriers_at = floats_at + consumers * floats * 4;
  static constexpr int shared_bytes = barriers_at + 2 * (consumers + stages) * 8;
  static_assert(shared_bytes + 1024 <= 227 * 1024);
  static_assert(base_floats % 4 == 0 && score_row % 4 == 0 && barriers_at % 8 == 0);
  static_assert(registers_suffice(threads, 128 * consumers, producer_registers, consumer_registers));
};

template <class Shape>
struct SelectShared {
  std::uint32_t base;
  unsigned char* memory;  ///< at `base`

  __device__ std::uint32_t query(int warpgroup) const { return base + warpgroup * Shape::own_query_bytes; }
  __device__ std::uint32_t key(int stage) const { return base + Shape::query_bytes + stage * Shape::key_bytes; }
  /// A warpgroup's log-sum-exps, and behind them its sums, twice.
  __device__ float* bases(int warpgroup) const {
    return reinterpret_cast<float*>(memory + Shape::floats_at) + warpgroup * Shape::floats;
  }
  __device__ float* scores(int warpgroup) const { return bases(warpgroup) + Shape::base_floats; }
  __device__ std::uint32_t query_ready(int warpgroup) const { return base + Shape::barriers_at + warpgroup * 8; }
  __device__ std::uint32_t query_free(int warpgroup) const { return query_ready(Shape::consumers) + warpgroup * 8; }
  __device__ std::uint32_t key_ready(int stage) const { return query_free(Shape::consumers) + stage * 8; }
  __device__ std::uint32_t key_free(int stage) const { return key_ready(Shape::stages) + stage * 8; }

  __device__ void initialise() const {
    for (int warpgroup = 0; warpgroup < Shape::consumers; ++warpgroup) {
      ptx::mbarrier_init(query_ready(warpgroup), 1);
      ptx::mbarrier_init(query_free(warpgroup), 1);
    }
    for (int stage = 0; stage < Shape::stages; ++stage) {
      ptx::mbarrier_init(key_ready(stage), 1);
      ptx::mbarrier_init(key_free(stage), Shape::consumers);
    }
    ptx::fence_mbarrier_init();
  }
};

template <class Shape>
struct SelectArguments {
  AttentionProblem<typename Shape::T> problem;
  WorkList work;  ///< dealt out, not by ticket: the consumers leave the producer no registers for that
  SummaryRule summaries;
  SelectionRule selection;
  std::int32_t* selected;

  /// Stages of summaries that the tile's last query needs.
  __device__ int stages(const QueryTile& tile, int position) const {
    const int last = position + tile.rows - 1;
    if (!selection.chooses(last) || selection.num_scored() == 0) return 0;
    return (selection.candidates_end(last) + Shape::blocks - 1) / Shape::blocks;
  }
};

template <class Shape>
__device__ __forceinline__ void producer_loop(const SelectArguments<Shape>& a, const CUtensorMap& queries,
                                              const CUtensorMap& keys, const SelectShared<Shape>& shared) {
  RingPosition<Shape::stages> ring;
  int item_phase = 1;
  for (int item = blockIdx.x; item < a.work.count(); item += gridDim.x) {
    const QueryTile tile = a.problem.tiles[tile_of(a.work, item)];
    const Segment& segment = a.problem.segments[tile.segment];
    const int group = item % a.work.num_kv_heads, summary = static_cast<int>(segment.summary);
    const int stages = a.stages(tile, static_cast<int>(segment.position + tile.row - segment.row));
    if (stages == 0) continue;
    const auto load_queries = [&] {
      for (int own = 0; own < Shape::consumers; ++own) {
        ptx::mbarrier_wait(shared.query_free(own), item_phase);
        ptx::mbarrier_arrive_expect_tx(shared.query_ready(own), Shape::query_bytes / Shape::consumers);
        for (int panel = 0; panel < Shape::d_qk / 64; ++panel)
          ptx::tma_load(shared.query(own) + panel * Shape::query_panel_bytes, &queries, shared.query_ready(own),
                        panel * 64, static_cast<int>(tile.row) + own * Shape::own_queries,
                        group * Shape::heads_per_group);
      }
      item_phase ^= 1;
    };
    // The first summaries come in while the last item's queries are in use.
    const int ahead = min(stages, Shape::stages - 1);
    for (int index = 0; index < stages; ++index, ring.advance()) {
      if (index == ahead) load_queries();
      ptx::mbarrier_wait(shared.key_free(ring.stage), ring.phase ^ 1);
      ptx::mbarrier_arrive_expect_tx(shared.key_ready(ring.stage), Shape::key_bytes);
      for (int panel = 0; panel < Shape::d_qk / 64; ++panel)
        ptx::tma_load(shared.key(ring.stage) + panel * Shape::panel_bytes, &keys, shared.key_ready(ring.stage),
                      panel * 64, group, summary + index * Shape::keys);
    }
    if (ahead == stages) load_queries();
  }
}

/// Products of 64 summaries with a warpgroup's 8 queries, enqueued.
template <class Shape>
__device__ __forceinline__ void enqueue_products(float (&s)[Shape::columns / 2], std::uint64_t keys,
                                                 std::uint64_t queries) {
  ptx::warpgroup_fence_operand(s);
  ptx::wgmma_fence();
#pragma unroll
  for (int step = 0; step < Shape::d_qk / 16; ++step)
    ptx::wgmma_ss(typename Shape::T{}, s, ptx::advance_desc(keys, step / 4 * Shape::panel_bytes + step % 4 * 32),
                  ptx::advance_desc(queries, step / 4 * Shape::query_panel_bytes + step % 4 * 32), step > 0);
  ptx::wgmma_commit();
}

/// Twice the probabilities of a lane's products, summed over heads: sums[half][e] is of summary lane / 4 + 8 half of
/// the warp's 16 and of query 2 (lane % 4) + e.
template <class Shape>
__device__ __forceinline__ void sum_over_heads(const float (&s)[Shape::columns / 2], const float* bases, float scale,
                                               float (&sums)[2][2]) {
  const float4* const own_bases = reinterpret_cast<const float4*>(bases + threadIdx.x % 4 * Shape::base_row);
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
__device__ __forceinline__ void consumer_loop(const SelectArguments<Shape>& a, const SelectShared<Shape>& shared) {
  const int warpgroup = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const bool is_leader = threadIdx.x % 128 == 0;
  const auto wait_for_all = [&] { ptx::named_barrier(1 + warpgroup, 128); };
  const std::uint64_t queries = ptx::make_smem_desc(shared.query(warpgroup));
  float* const bases = shared.bases(warpgroup);
  const int first_query = warpgroup * Shape::own_queries, own_query = first_query + 2 * warp;  // in the tile
  RingPosition<Shape::stages> ring;
  int item_phase = 0;
  for (int item = blockIdx.x; item < a.work.count(); item += gridDim.x) {
    const QueryTile tile = a.problem.tiles[tile_of(a.work, item)];
    const Segment& segment = a.problem.segments[tile.segment];
    const int group = item % a.work.num_kv_heads, start = static_cast<int>(segment.position + tile.row - segment.row);
    const int stages = a.stages(tile, start);
    RegisterTopBlocks top[2];
    if (stages > 0) {
      {
        const int query = threadIdx.x % 128 / Shape::heads_per_group, head = threadIdx.x % Shape::heads_per_group;
        float base = 0.f;
        if (first_query + query < tile.rows)
          base = a.problem.log_sum_exp[(tile.row + first_query + query) * a.problem.num_q_heads +
                                       group * Shape::heads_per_group + head];
        bases[query / 2 * Shape::base_row + head * 2 + query % 2] = base * log2_e - 1.f;  // twice the probability
      }
      const int column = lane % 4 * 2;
      const int visible[2] = {a.summaries.visible(start + first_query + column),
                              a.summaries.visible(start + first_query + column + 1)};
      wait_for_all();
      ptx::mbarrier_wait(shared.query_ready(warpgroup), item_phase);
      item_phase ^= 1;
      int candidates_end[2];  // of the warp's own queries: blocks; 0 of one that does not choose
      for (int e = 0; e < 2; ++e) {
        const int position = start + own_query + e;
        const bool chooses = own_query + e < tile.rows && a.selection.chooses(position);
        candidates_end[e] = chooses ? a.selection.candidates_end(position) : 0;
      }
      float carry[2] = {};
      float* scores = shared.scores(warpgroup);
      int other = Shape::score_floats;  // on to the other buffer
      for (int index = 0; index < stages; ++index) {
        float s[Shape::columns / 2];
        ptx::mbarrier_wait(shared.key_ready(ring.stage), ring.phase);
        enqueue_products<Shape>(s, ptx::make_smem_desc(shared.key(ring.stage)), queries);
        ptx::wgmma_wait<0>();
        ptx::warpgroup_fence_operand(s);
        if (is_leader) {
          ptx::mbarrier_arrive(shared.key_free(ring.stage));
          if (index == stages - 1) ptx::mbarrier_arrive(shared.query_free(warpgroup));
        }
        ring.advance();
        float sums[2][2];
        sum_over_heads<Shape>(s, bases, a.problem.scale_log2, sums);
        const int row = index % 2 * Shape::keys + 16 * warp + lane / 4, summary = index / 2 * (2 * Shape::keys) + row;
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int e = 0; e < 2; ++e)
            scores[(column + e) * Shape::score_row + row + 8 * half] =
                summary + 8 * half < visible[e] ? sums[half][e] : 0.f;
        if (index % 2 == 0 && index < stages - 1) continue;
        wait_for_all();
        const int last = index / 2 * (2 * Shape::blocks) + 31, block = last - lane;
        unsigned keys[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float score = block_score(scores + (2 * warp + e) * Shape::score_row, carry[e]);
          keys[e] = RegisterTopBlocks::key(score, block >= a.selection.init_blocks && block < candidates_end[e]);
        }
        RegisterTopBlocks::take(top, keys, last, a.selection.num_scored());
        // The next sums go elsewhere; those after them here, when all have been at a barrier since they read these.
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
  extern __shared__ unsigned char memory[];
  const std::uint32_t begin = ptx::shared_address(memory), base = (begin + 1023) / 1024 * 1024;
  const SelectShared<Shape> shared{base, memory + (base - begin)};
  if (threadIdx.x == 0) shared.initialise();
  __syncthreads();
  if (threadIdx.x < 128) {
    ptx::warpgroup_reg_dealloc<Shape::producer_registers>();
    if (threadIdx.x == 0) producer_loop<Shape>(a, queries, keys, shared);
  } else {
    ptx::warpgroup_reg_alloc<Shape::consumer_registers>();
    consumer_loop<Shape>(a, shared);
  }
}

}  // namespace

void select_blocks(const SelectBlocks& a, const Gpu& gpu, cudaStream_t stream) {
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
                                {Shape::own_queries, Shape::heads_per_group}};
    const CUtensorMap queries = make_tensor_map(a.q, a.dtype, by_heads);
    const CUtensorMap keys =
        make_tensor_map(a.keys, a.dtype, rows_layout(summaries, config.num_kv_heads, Shape::d_qk, Shape::keys, 1));
    const std::size_t bytes = Shape::shared_bytes + 1024;
    allow_shared_memory(select_blocks_kernel<Shape>, bytes);
    const int blocks = std::min(gpu.multiprocessors, arguments.work.tiles * arguments.work.num_kv_heads);
    select_blocks_kernel<Shape><<<blocks, Shape::threads, bytes, stream>>>(arguments, queries, keys);
    check_launch("select_blocks_sm90");
  });
}

}  // namespace cpnsa::cuda::sm90
