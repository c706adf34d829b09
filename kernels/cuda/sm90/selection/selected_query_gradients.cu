// dQ of selected attention: 8 neighbouring queries of one KV head walk the union of their blocks once, one warp per
// query, as in the forward. A query's q and dout stay in registers beside its dQ, read from global memory once; keys
// and values of each block come into free stages of shared memory through the copy engine. Thread blocks are
// persistent, and warps go on to the next tile one by one: its union has been built, and its first blocks have come in,
// meanwhile.

#include "kernels/cuda/sm90/attention/gradient_launch.cuh"
#include "kernels/cuda/sm90/run_op.hpp"
#include "kernels/cuda/sm90/selection/selected_block.cuh"
#include "kernels/cuda/sm90/selection/selected_query_gradients.hpp"

namespace cpnsa::cuda::sm90 {
namespace {

template <class Element, int Dqk, int Dv, int Heads>
struct SelectedGradientShape {
  using T = Element;
  static constexpr int d_qk = Dqk;
  static constexpr int d_v = Dv;
  static constexpr auto table = TableRow<Dqk, Dv, Heads>::shape.selected_query_gradients;
  static constexpr int heads_per_group = Heads;
  static constexpr int queries = table.queries;
  static constexpr int keys = tokens_per_block;
  static constexpr int stages = table.stages;
  static constexpr int consumers = queries * 32;  ///< threads; of a warpgroup more two load and two warps build unions
  static constexpr int builders = 64;
  static constexpr int threads = consumers + 128;
  static constexpr int producer_registers = 56;
  static constexpr int consumer_registers = 224;
  static constexpr bool queries_in_registers = table.queries_in_registers;
  static constexpr int lists = 2;
  static constexpr int keys_at_once = 32;  ///< whose scores are in registers
  using Queries = OwnQueries<T, queries_in_registers ? 0 : queries, heads_per_group, Dqk>;
  using Keys = StagePool<T, stages, Dqk, queries>;
  using Values = StagePool<T, stages, Dv, queries>;
  static_assert(registers_suffice(threads, consumers, producer_registers, consumer_registers));
};

/// dQ += dS K of a warp's query and a block, of which the query sees the first `visible` keys.
template <class Shape>
__device__ __forceinline__ void add_block(float (&dq)[Shape::d_qk / 8][4],
                                          const std::uint32_t (&q)[Shape::d_qk / 16][4],
                                          const std::uint32_t (&dout)[Shape::d_v / 16][4], const RowStatistics& row,
                                          int visible, float scale_log2, const ArrivalWord* key_arrival,
                                          const ArrivalWord* value_arrival, const SelectedMemory<Shape>& smem) {
  using T = typename Shape::T;
  using KeyTile = SwizzledTile<Shape::keys, Shape::d_qk>;
  const int key_stage = smem.keys().wait_for(key_arrival), value_stage = smem.values().wait_for(value_arrival);
  const int lane = threadIdx.x % 32;
#pragma unroll 1
  for (int first = 0; first < Shape::keys; first += Shape::keys_at_once) {
    float s[Shape::keys_at_once / 8][4], dp[Shape::keys_at_once / 8][4];
    const std::uint32_t keys = smem.keys().tile(key_stage) + first * swizzle_bytes;
    if constexpr (Shape::queries_in_registers)
      multiply_keys<T, KeyTile>(s, q, keys);
    else
      multiply_keys<T, typename Shape::Queries::Tile, KeyTile>(s, smem.queries().tile(), 0, keys);
    multiply_keys<T, SwizzledTile<Shape::keys, Shape::d_v>>(dp, dout,
                                                            smem.values().tile(value_stage) + first * swizzle_bytes);
#pragma unroll
    for (int n = 0; n < Shape::keys_at_once / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float p = ptx::exp2_approximate(fmaf(s[n][i], scale_log2, -row.sum_log2[i / 2]));
        s[n][i] = p * fmaf(row.weight[i / 2], dp[n][i], -row.delta[i / 2]);
      }
    if (visible < first + Shape::keys_at_once) {
#pragma unroll
      for (int n = 0; n < Shape::keys_at_once / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (first + n * 8 + lane % 4 * 2 + i % 2 >= visible) s[n][i] = 0.f;
    }
    multiply_values<T, KeyTile>(dq, s, keys);
  }
  smem.keys().release(key_stage);
  smem.values().release(value_stage);
}

/// A warp's 16 rows of `dim` elements from global memory as first operands, zeros if they do not exist.
template <class T, int Steps>
__device__ __forceinline__ void read_rows(std::uint32_t (&a)[Steps][4], const T* first, int dim, bool exist) {
  const int lane = threadIdx.x % 32;
  const T* const from = first + lane / 4 * dim + lane % 4 * 2;
#pragma unroll
  for (int step = 0; step < Steps; ++step)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      a[step][i] =
          exist ? __ldg(reinterpret_cast<const std::uint32_t*>(from + i % 2 * 8 * dim + step * 16 + i / 2 * 8)) : 0;
}

template <class Shape>
__device__ __forceinline__ void consumer_loop(const SelectedWork<GradientProblem<typename Shape::T>>& a,
                                              const CUtensorMap& queries, const UnionBuffers& buffers,
                                              const SelectedMemory<Shape>& smem) {
  const int query = threadIdx.x / 32, lane = threadIdx.x % 32;
  RingPosition<Shape::lists> lists;
  int query_phase = 0;
#pragma unroll 1
  for (;; lists.advance(), query_phase ^= 1) {
    ptx::mbarrier_wait(smem.list_full(lists.stage), lists.phase);
    const SelectedItem item = buffers.item(lists.stage);
    if (!item.given) return;
    if constexpr (!Shape::queries_in_registers) smem.queries().prefetch(queries, item);
    const bool exists = query < item.tile.rows;
    const std::int64_t head_row = (item.tile.row + query) * a.problem.num_q_heads + item.group * Shape::heads_per_group;
    const RowStatistics row(a.problem, head_row, exists);
    float dq[Shape::d_qk / 8][4] = {};
    std::uint32_t q[Shape::d_qk / 16][4], dout[Shape::d_v / 16][4];
    read_rows(dout, a.problem.dout + head_row * Shape::d_v, Shape::d_v, exists);
    if constexpr (Shape::queries_in_registers)
      read_rows(q, a.problem.q + head_row * Shape::d_qk, Shape::d_qk, exists);
    else
      ptx::mbarrier_wait(smem.queries().full(), query_phase);
    const SelectedUnion list = buffers.list(Shape::lists, lists.stage);
    for_each_chosen(list, query, [&](int index, int) {
      add_block<Shape>(dq, q, dout, row, item.position + query + 1 - list.blocks[index] * Shape::keys,
                       a.problem.scale_log2, buffers.arrivals(ArrivalsOf::keys, lists.stage) + index,
                       buffers.arrivals(ArrivalsOf::values, lists.stage) + index, smem);
    });
    __syncwarp();
    if (lane == 0) ptx::mbarrier_arrive(smem.list_empty(lists.stage));
    if (exists)
      add_dq_rows(reinterpret_cast<float(&)[Shape::d_qk / 2]>(dq), a.problem.scale,
                  a.problem.dq + head_row * Shape::d_qk, Shape::d_qk);
  }
}

template <class Shape>
__global__ void __launch_bounds__(Shape::threads, 1)
    selected_query_gradients_kernel(const __grid_constant__ SelectedWork<GradientProblem<typename Shape::T>> arguments,
                                    const __grid_constant__ CUtensorMap queries,
                                    const __grid_constant__ BlockMaps blocks) {
  const SelectedMemory<Shape> smem{shared_memory<SelectedLayout<Shape>>()};
  const UnionBuffers buffers = smem.union_buffers(arguments.words, arguments.capacity);
  if (threadIdx.x == 0) smem.initialise();
  __syncthreads();
  if (threadIdx.x < Shape::consumers) {
    ptx::warpgroup_reg_alloc<Shape::consumer_registers>();
    consumer_loop<Shape>(arguments, queries, buffers, smem);
  } else {
    ptx::warpgroup_reg_dealloc<Shape::producer_registers>();
    run_producer_warps<Shape>(arguments, blocks, buffers, smem);
  }
}

}  // namespace

template <>
bool serves(const SelectedAttentionBackward& a) {
  if (!serves(*a.config, a.dtype) || a.config->select_block != tokens_per_block) return false;
  return unions_fit<SelectedGradientShape>(a);
}

void selected_query_gradients(const SelectedAttentionBackward& a, const Gpu& gpu, cudaStream_t stream) {
  visit_shape<SelectedGradientShape>(a, [&]<class Shape>(std::type_identity<Shape>) {
    using T = typename Shape::T;
    const ListView<QueryTile> tiles = cuda_schedule(a.queries).tiles(Shape::queries);
    if (tiles.count == 0 || a.group_begin == a.group_end) return;
    const auto [work, blocks] = persistent_work(a, tiles.count, a.group_end - a.group_begin, gpu, stream);
    const auto arguments = selected_work<Shape>(a, gradient_problem<T>(a, tiles), work);
    const std::size_t bytes = selected_shared_bytes<Shape>(a);
    auto* const kernel = selected_query_gradients_kernel<Shape>;
    allow_shared_memory(kernel, bytes);
    kernel<<<blocks, Shape::threads, bytes, stream>>>(arguments, row_maps(a, 1).queries, block_maps(a));
    check_launch("selected_query_gradients");
  });
}

}  // namespace cpnsa::cuda::sm90
