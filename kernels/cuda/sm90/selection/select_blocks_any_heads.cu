// Importance and top n for any number of query heads per KV head, any summaries and blocks. The products are Sᵀ = K Qᵀ,
// of 64 summaries and 128 columns per warpgroup (select_blocks_plan.hpp). The 64 values of a lane belong to two queries
// of each chunk and to two summaries, so that a lane sums over heads alone, in ascending order: the sums depend on the
// number of heads and on nothing else that could differ between ranks. They go through shared memory, where a warp
// finds whole rows of two queries of each chunk, folds them into blocks, one per lane, and keeps the best in registers.

#include "kernels/cuda/common/summary_rule.cuh"
#include "kernels/cuda/sm90/attention/attention_launch.cuh"
#include "kernels/cuda/sm90/selection/select_blocks_any_heads.hpp"
#include "kernels/cuda/sm90/selection/select_blocks_plan.hpp"
#include "kernels/cuda/sm90/selection/top_blocks.cuh"

namespace cpnsa::cuda::sm90 {
namespace {

/// `Groups`, `Chunks` and `Slots`: those of a variant (SelectPlan::Registers).
template <class Element, int Dqk, int Groups, int Chunks, int Slots>
struct SelectShape {
  using T = Element;
  static constexpr int d_qk = Dqk;
  static constexpr int max_chunks = Chunks;
  static constexpr int keys = 64;  ///< summaries per stage
  static constexpr int columns = 128;
  static constexpr int stages = any_heads_select_stages(Dqk);
  static constexpr int max_threads = 128 * (Groups + 1);
  static constexpr int producer_registers = 24;
  static constexpr int consumer_registers = Groups == 4 ? 112 : 152;
  using Top = RegisterTopBlocks<Slots>;
  using Queries = PanelTile<T, columns, Dqk>;
  using Keys = PanelTile<T, keys, Dqk>;
  static_assert(registers_suffice(max_threads, 128 * Groups, producer_registers, consumer_registers));
};

/// Followed by the tiles of q, then by the sums of every warpgroup.
template <class Shape>
struct alignas(tile_alignment) SelectLayout {
  typename Shape::Keys k[Shape::stages];
  Mbarrier q_full[SelectPlan::max_q_tiles];
  Mbarrier q_empty[SelectPlan::max_q_tiles];
  Mbarrier k_full[Shape::stages];
  Mbarrier k_empty[Shape::stages];
};

template <class Shape>
struct SelectMemory : SharedMemory<SelectLayout<Shape>> {
  using Layout = SelectLayout<Shape>;
  static constexpr int q_offset = sizeof(Layout);

  __device__ std::uint32_t k(int stage, int panel = 0) const {
    return this->at(offsetof(Layout, k), stage, sizeof(typename Shape::Keys)) + panel * Shape::Keys::panel_bytes;
  }
  __device__ std::uint32_t q(int tile) const { return this->at(q_offset, tile, sizeof(typename Shape::Queries)); }
  __device__ std::uint32_t q_full(int tile) const { return this->barrier(offsetof(Layout, q_full), tile); }
  __device__ std::uint32_t q_empty(int tile) const { return this->barrier(offsetof(Layout, q_empty), tile); }
  __device__ std::uint32_t k_full(int stage) const { return this->barrier(offsetof(Layout, k_full), stage); }
  __device__ std::uint32_t k_empty(int stage) const { return this->barrier(offsetof(Layout, k_empty), stage); }

  /// The sums of a consumer warpgroup.
  __device__ float* sums(const SelectPlan& plan, int warpgroup) const {
    return reinterpret_cast<float*>(reinterpret_cast<unsigned char*>(this->layout) + q_offset +
                                    plan.warpgroups * plan.q_tiles * sizeof(typename Shape::Queries)) +
           warpgroup * plan.sums_floats();
  }

  __device__ void initialise(const SelectPlan& plan) const {
    for (int tile = 0; tile < plan.warpgroups * plan.q_tiles; ++tile) {
      ptx::mbarrier_init(q_full(tile), 1);
      ptx::mbarrier_init(q_empty(tile), 1);
    }
    for (int stage = 0; stage < Shape::stages; ++stage) {
      ptx::mbarrier_init(k_full(stage), 1);
      ptx::mbarrier_init(k_empty(stage), plan.warpgroups);
    }
    ptx::fence_mbarrier_init();
  }
};

template <class T>
struct SelectArguments {
  AttentionProblem<T> problem;
  WorkList work;  ///< items are dealt out, not by ticket, for which the producer has no registers
  SelectPlan plan;
  SummaryRule summaries;
  SelectionRule selection;
  std::int32_t* selected;

  /// Stages of `keys` summaries that the last query of the tile needs.
  __device__ int stages(const QueryTile& tile, int position, int keys) const {
    const int last = position + tile.rows - 1;
    if (!selection.chooses(last) || selection.num_scored() == 0) return 0;
    return (selection.candidates_end(last) * plan.per_block + keys - 1) / keys;
  }
};

/// A position in the ring of a warpgroup's tiles of q.
struct QueryRing {
  int tile = 0;
  int phase = 0;
  __device__ void advance(int tiles) {
    if (++tile == tiles) {
      tile = 0;
      phase ^= 1;
    }
  }
};

template <class Shape>
__device__ __forceinline__ void producer_loop(const SelectArguments<typename Shape::T>& a, const CUtensorMap& queries,
                                              const CUtensorMap& keys, const SelectMemory<Shape>& smem) {
  const SelectPlan& plan = a.plan;
  RingPosition<Shape::stages> ring;
  QueryRing q_ring;
  for (int item = blockIdx.x; item < a.work.count(); item += gridDim.x) {
    const QueryTile tile = a.problem.tiles[tile_of(a.work, item)];
    const Segment& segment = a.problem.segments[tile.segment];
    const int group = item % a.work.num_kv_heads, summary = static_cast<int>(segment.summary);
    const int stages = a.stages(tile, static_cast<int>(segment.position + tile.row - segment.row), Shape::keys);
    if (stages == 0) continue;
    const auto load_queries = [&] {
#pragma unroll 1
      for (int part = 0; part < plan.parts; ++part, q_ring.advance(plan.q_tiles))
#pragma unroll 1
        for (int warpgroup = 0; warpgroup < plan.warpgroups; ++warpgroup) {
          const int at = warpgroup * plan.q_tiles + q_ring.tile;
          ptx::mbarrier_wait(smem.q_empty(at), q_ring.phase ^ 1);
          ptx::mbarrier_arrive_expect_tx(smem.q_full(at),
                                         plan.chunks * plan.heads * 8 * swizzle_bytes * Shape::Queries::num_panels);
#pragma unroll 1
          for (int chunk = 0; chunk < plan.chunks; ++chunk)
            for (int panel = 0; panel < Shape::Queries::num_panels; ++panel)
              ptx::tma_load(smem.q(at) + panel * Shape::Queries::panel_bytes + chunk * plan.heads * 8 * swizzle_bytes,
                            &queries, smem.q_full(at), panel * panel_channels,
                            static_cast<int>(tile.row) + (warpgroup * plan.chunks + chunk) * 8,
                            group * a.problem.heads_per_group + part * plan.heads);
        }
    };
    // The first summaries are loaded while the last item's queries are in use.
    const int ahead = min(stages, Shape::stages - 1);
    for (int index = 0; index < stages; ++index, ring.advance()) {
      if (!plan.streams && index == ahead) load_queries();
      const std::uint32_t full = smem.k_full(ring.stage);
      ptx::mbarrier_wait(smem.k_empty(ring.stage), ring.phase ^ 1);
      ptx::mbarrier_arrive_expect_tx(full, sizeof(typename Shape::Keys));
      for (int panel = 0; panel < Shape::Keys::num_panels; ++panel)
        ptx::tma_load(smem.k(ring.stage, panel), &keys, full, panel * panel_channels, group,
                      summary + index * Shape::keys);
      if (plan.streams) load_queries();
    }
    if (!plan.streams && ahead == stages) load_queries();
  }
}

/// Sᵀ = K Qᵀ of 64 summaries and the columns of a warpgroup.
template <class Shape>
__device__ __forceinline__ void multiply(float (&s)[Shape::columns / 2], std::uint32_t keys, std::uint32_t queries) {
  const std::uint64_t first = ptx::make_smem_desc(keys), second = ptx::make_smem_desc(queries);
  ptx::warpgroup_fence_operand(s);
  ptx::wgmma_fence();
#pragma unroll
  for (int step = 0; step < Shape::d_qk / 16; ++step)
    ptx::wgmma_ss(typename Shape::T{}, s, ptx::advance_desc(first, Shape::Keys::channel_offset(step)),
                  ptx::advance_desc(second, Shape::Queries::channel_offset(step)), step > 0);
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
  ptx::warpgroup_fence_operand(s);
}

/// Adds twice the probabilities of a lane's products to sums[half][e], which belong to summary lane / 4 + 8 half of the
/// warp's 16 and to query 2 (lane % 4) + e of a chunk. After `Heads` slots, those of a chunk, end_chunk() takes the
/// sums and lets them begin again. `bases`: of the lane's two queries, for every slot.
template <int Heads, int Chunks, int Values, class EndChunk>
__device__ __forceinline__ void sum_over_heads(const float (&s)[Values], const float* bases, float scale, int chunks,
                                               float (&sums)[2][2], EndChunk&& end_chunk) {
#pragma unroll
  for (int chunk = 0; chunk < (16 / Heads < Chunks ? 16 / Heads : Chunks); ++chunk) {
    if (chunk >= chunks) break;
#pragma unroll
    for (int slot = chunk * Heads; slot < (chunk + 1) * Heads; ++slot) {
      const float2 base = reinterpret_cast<const float2*>(bases)[slot];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        sums[i / 2][i % 2] += ptx::exp2_approximate(fmaf(s[4 * slot + i], scale, i % 2 == 0 ? -base.x : -base.y));
    }
    end_chunk();
  }
}

/// The same for any number of heads, which the compiler cannot interleave.
template <int Values, class EndChunk>
__device__ __forceinline__ void sum_over_heads(const float (&s)[Values], const float* bases, float scale, int heads,
                                               int chunks, float (&sums)[2][2], EndChunk&& end_chunk) {
  int left = heads;
#pragma unroll
  for (int slot = 0; slot < 16; ++slot) {
    if (slot >= heads * chunks) break;
    const float2 base = reinterpret_cast<const float2*>(bases)[slot];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      sums[i / 2][i % 2] += ptx::exp2_approximate(fmaf(s[4 * slot + i], scale, i % 2 == 0 ? -base.x : -base.y));
    if (--left == 0) {
      end_chunk();
      left = heads;
    }
  }
}

/// Twice the score of a block times s, from the sums of a query, whose first is that of summary `first`.
__device__ __forceinline__ float fold(const SelectPlan& plan, const float* sums, int first, int block) {
  const float* const own = sums + block * plan.per_block - plan.reach - first;
  float score = 0.f;
#pragma unroll 1
  for (int i = 0; i < plan.per_block + plan.reach; ++i)
    score = fmaf(static_cast<float>(min(i + 1, plan.per_block) - max(i - plan.reach, 0)), own[i], score);
  return score;
}

template <class Shape>
__device__ __forceinline__ void consumer_loop(const SelectArguments<typename Shape::T>& a,
                                              const SelectMemory<Shape>& smem) {
  const SelectPlan& plan = a.plan;
  const int warpgroup = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const bool is_leader = threadIdx.x % 128 == 0;
  const auto wait_for_all = [&] { ptx::named_barrier(1 + warpgroup, 128); };
  const int queries = 8 * plan.chunks, first_query = warpgroup * queries;  // in the tile
  float* const bases = smem.sums(plan, warpgroup);
  // Addresses are computed where they are needed: registers are short.
  const auto visible = [&] { return reinterpret_cast<int*>(bases + ptx::opaque(plan.base_floats())); };  // per query
  const auto sums_of_query = [&](int query) {
    return bases + ptx::opaque(plan.base_floats() + queries) + query * plan.pitch;
  };
  const bool folds_by_four = plan.per_block == 4 && plan.reach == 1;
  const int last_heads = a.problem.heads_per_group - (plan.parts - 1) * plan.heads;  // of the last part
  RingPosition<Shape::stages> ring;
  QueryRing q_ring;
  for (int item = blockIdx.x; item < a.work.count(); item += gridDim.x) {
    const QueryTile tile = a.problem.tiles[tile_of(a.work, item)];
    const Segment& segment = a.problem.segments[tile.segment];
    const int group = item % a.work.num_kv_heads, start = static_cast<int>(segment.position + tile.row - segment.row);
    const int stages = a.stages(tile, start, Shape::keys);
    typename Shape::Top top[Shape::max_chunks][2];
    if (stages > 0) {
      const int thread = threadIdx.x % 128, slot = thread / 8;
      for (int part = 0; part < plan.parts; ++part) {
        const int head = plan.parts == 1 ? slot % plan.heads : part * plan.heads + slot;
        const int query = (plan.parts == 1 ? slot / plan.heads * 8 : 0) + thread % 8;
        float base = 0.f;
        if (query < queries && first_query + query < tile.rows && head < a.problem.heads_per_group)
          base = a.problem.log_sum_exp[(tile.row + first_query + query) * a.problem.num_q_heads +
                                       group * a.problem.heads_per_group + head];
        bases[(part * 4 + thread % 8 / 2) * SelectPlan::base_pitch + slot * 2 + thread % 2] =
            base * log2_e - 1.f;  // twice the probability
      }
      if (thread < queries) visible()[thread] = a.summaries.visible(start + first_query + thread);
      for (int i = thread; i < queries * plan.carry; i += 128) sums_of_query(i / plan.carry)[i % plan.carry] = 0.f;
      wait_for_all();
      for (int index = 0; index < stages; ++index) {
        float sums[2][2] = {};
        float* to = sums_of_query(lane % 4 * 2) + plan.carry + index % 2 * Shape::keys + 16 * warp + lane / 4;
        const int2* seen = reinterpret_cast<const int2*>(visible()) + lane % 4;
        const int summary = index * Shape::keys + 16 * warp + lane / 4;
        int part = 0;
        const auto end_chunk = [&] {
          if (part < plan.parts - 1) return;
          const int2 ends = *seen;
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            to[8 * half] = summary + 8 * half < ends.x ? sums[half][0] : 0.f;
            to[plan.pitch + 8 * half] = summary + 8 * half < ends.y ? sums[half][1] : 0.f;
            sums[half][0] = sums[half][1] = 0.f;
          }
          to += 8 * plan.pitch;
          seen += 4;
        };
        ptx::mbarrier_wait(smem.k_full(ring.stage), ring.phase);
#pragma unroll 1
        for (; part < plan.parts; ++part) {
          const int at = warpgroup * plan.q_tiles + (plan.streams ? q_ring.tile : part);
          if (plan.streams || index == 0) ptx::mbarrier_wait(smem.q_full(at), q_ring.phase);
          float s[Shape::columns / 2];
          multiply<Shape>(s, smem.k(ring.stage), smem.q(at));
          if (is_leader) {
            if (part == plan.parts - 1) ptx::mbarrier_arrive(smem.k_empty(ring.stage));
            if (plan.streams || index == stages - 1) ptx::mbarrier_arrive(smem.q_empty(at));
          }
          if (plan.streams) q_ring.advance(plan.q_tiles);
          const float* const own_bases = bases + (part * 4 + lane % 4) * SelectPlan::base_pitch;
          const int heads = part < plan.parts - 1 ? plan.heads : last_heads;
          const auto sum = [&]<int Heads>(std::integral_constant<int, Heads>) {
            if (heads != Heads) return false;
            sum_over_heads<Heads, Shape::max_chunks>(s, own_bases, a.problem.scale_log2, plan.chunks, sums, end_chunk);
            return true;
          };
          const auto sum_one_of = [&]<int... Heads>(std::integer_sequence<int, Heads...>) {
            return (sum(std::integral_constant<int, Heads>{}) || ...);
          };
          using Listed = std::conditional_t<(Shape::max_chunks > 2), std::integer_sequence<int, 1, 2, 3, 4, 5>,
                                            std::integer_sequence<int, 6, 7, 8, 12, 16>>;
          if (!sum_one_of(Listed{}))
            sum_over_heads(s, own_bases, a.problem.scale_log2, heads, plan.chunks, sums, end_chunk);
        }
        ring.advance();
        if (index % 2 == 0 && index < stages - 1) continue;
        wait_for_all();
        const int first = index / 2 * SelectPlan::window;
        const int begin = first / plan.per_block, end = (first + SelectPlan::window) / plan.per_block;
#pragma unroll
        for (int chunk = 0; chunk < Shape::max_chunks; ++chunk) {
          if (chunk >= plan.chunks) continue;
          const int own_query = chunk * 8 + 2 * warp;  // of the warpgroup
          float* const own = sums_of_query(own_query);
          int candidates_end[2];  // blocks, for the two queries; 0 for a query that does not choose
          for (int e = 0; e < 2; ++e) {
            const int query = first_query + own_query + e, position = start + query;
            const bool chooses = query < tile.rows && a.selection.chooses(position);
            candidates_end[e] = chooses ? min(end, a.selection.candidates_end(position)) : 0;
          }
#pragma unroll 1
          for (int from = begin; from < end; from += 32) {
            const int last = from + 31, block = last - lane;
            unsigned keys[2];
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              const float* const window = own + e * plan.pitch + plan.carry;
              const bool competes = block >= a.selection.init_blocks && block < candidates_end[e];
              float score = 0.f;
              if (folds_by_four) {
                float carry = window[-1];
                score = block_score(window, carry);
              } else if (competes) {
                score = fold(plan, window, first, block);
              }
              keys[e] = Shape::Top::key(score, competes);
            }
            Shape::Top::take(top[chunk], keys, last, a.selection.num_scored());
          }
          __syncwarp();
          for (int i = lane; i < 2 * plan.carry; i += 32) {
            float* const row = own + i / plan.carry * plan.pitch + i % plan.carry;
            *row = row[SelectPlan::window];
          }
        }
        wait_for_all();  // before the next sums are written
      }
      if (!plan.streams) q_ring.phase ^= 1;
    }
#pragma unroll
    for (int chunk = 0; chunk < Shape::max_chunks; ++chunk) {
      if (chunk >= plan.chunks) continue;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int query = first_query + chunk * 8 + 2 * warp + e;
        if (query < tile.rows)
          top[chunk][e].write(
              a.selected + ((tile.row + query) * a.problem.num_kv_heads + group) * a.selection.select_count,
              a.selection, start + query);
      }
    }
  }
}

template <class Shape>
__global__ void __launch_bounds__(Shape::max_threads, 1)
    select_any_heads_kernel(const __grid_constant__ SelectArguments<typename Shape::T> a,
                            const __grid_constant__ CUtensorMap queries, const __grid_constant__ CUtensorMap keys) {
  const SelectMemory<Shape> smem{shared_memory<SelectLayout<Shape>>()};
  if (threadIdx.x == 0) smem.initialise(a.plan);
  __syncthreads();
  if (threadIdx.x < 128) {
    ptx::warpgroup_reg_dealloc<Shape::producer_registers>();
    if (threadIdx.x == 0) producer_loop<Shape>(a, queries, keys, smem);
  } else {
    ptx::warpgroup_reg_alloc<Shape::consumer_registers>();
    consumer_loop<Shape>(a, smem);
  }
}

template <class Shape>
void launch(const SelectBlocks& a, const Gpu& gpu, cudaStream_t stream) {
  using T = typename Shape::T;
  const Config& config = *a.config;
  const CudaSegmentSchedule& schedule = cuda_schedule(a.queries);
  const SelectPlan plan(config, Shape::d_qk, Shape::stages);
  const ListView<QueryTile> tiles = schedule.tiles(plan.tile_queries());
  if (tiles.count == 0) return;
  std::int64_t summaries = 1;
  for (const Segment& segment : schedule.segments) summaries = std::max(summaries, segment.summary + segment.summaries);
  SelectArguments<T> arguments{attention_problem<T>(a, schedule, tiles),
                               {static_cast<int>(tiles.count), static_cast<int>(config.num_kv_heads), nullptr},
                               plan,
                               SummaryRule(config),
                               SelectionRule(config),
                               a.selected};
  arguments.problem.log_sum_exp = static_cast<float*>(const_cast<void*>(a.log_sum_exp));
  const std::int64_t d_qk = config.head_dim_qk;
  const TensorLayout by_heads{
      {d_qk, schedule.rows, config.num_q_heads}, {d_qk * config.num_q_heads, d_qk}, {8, plan.heads}};
  const CUtensorMap queries = make_tensor_map(a.q, a.dtype, by_heads);
  const CUtensorMap keys =
      make_tensor_map(a.keys, a.dtype, rows_layout(summaries, config.num_kv_heads, d_qk, Shape::keys, 1));
  auto* const kernel = select_any_heads_kernel<Shape>;
  allow_shared_memory(kernel, static_cast<std::size_t>(plan.shared_bytes));
  const int blocks = std::min(gpu.multiprocessors, arguments.work.tiles * arguments.work.num_kv_heads);
  kernel<<<blocks, 128 * (plan.warpgroups + 1), plan.shared_bytes, stream>>>(arguments, queries, keys);
  check_launch("select_blocks");
}

template <class T, int Dqk, int /*Dv*/, int Heads>
struct OfRow {
  template <const SelectPlan::Registers& Variant>
  using Shape = SelectShape<T, Dqk, Variant.warpgroups, Variant.chunks, Variant.slots>;
  static constexpr int heads_per_group = Heads;
};

}  // namespace

void select_blocks_any_heads(const SelectBlocks& a, const Gpu& gpu, cudaStream_t stream) {
  visit_row<OfRow>(any_heads_row(*a.config), a.dtype, [&]<class Row>(std::type_identity<Row>) {
    if constexpr (Row::heads_per_group == any_heads) {
      const SelectPlan::Registers variant(*a.config);
      if (variant.slots > 1)
        launch<typename Row::template Shape<SelectPlan::long_lists>>(a, gpu, stream);
      else if (variant.chunks > 2)
        launch<typename Row::template Shape<SelectPlan::many_queries>>(a, gpu, stream);
      else
        launch<typename Row::template Shape<SelectPlan::few_queries>>(a, gpu, stream);
    }
  });
}

}  // namespace cpnsa::cuda::sm90
