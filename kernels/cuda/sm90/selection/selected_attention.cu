// Selected attention: 12 neighbouring queries of one KV head walk the union of their blocks once, one warp per query:
// its 16 heads are the rows of mma.sync, so no product is wasted on a query that did not choose the block. Keys and
// values of each block come into free stages of shared memory through the copy engine, once for all of the queries that
// chose it. A warp takes a block's 64 keys at once and reads its query from shared memory. Thread blocks are
// persistent, and warps go on to the next tile one by one: its union has been built, and its first blocks have come in,
// meanwhile.

#include "kernels/cuda/common/combination.cuh"
#include "kernels/cuda/sm90/run_op.hpp"
#include "kernels/cuda/sm90/selection/selected_block.cuh"

namespace cpnsa::cuda::sm90 {
namespace {

template <class Element, int Dqk, int Dv, int Heads>
struct SelectedShape {
  using T = Element;
  static constexpr int d_qk = Dqk;
  static constexpr int d_v = Dv;
  static constexpr auto table = TableRow<Dqk, Dv, Heads>::shape.selected_attention;
  static constexpr int heads_per_group = Heads;
  static constexpr int queries = table.queries;
  static constexpr int keys = tokens_per_block;
  static constexpr int key_stages = table.key_stages;
  static constexpr int value_stages = table.value_stages;
  static constexpr int consumers = queries * 32;  ///< threads; of a warpgroup more two load and two warps build unions
  static constexpr int builders = 64;
  static constexpr int threads = consumers + 128;
  static constexpr int producer_registers = 56;
  static constexpr int consumer_registers = 152;
  static constexpr int lists = 2;
  using Queries = OwnQueries<T, queries, heads_per_group, Dqk>;
  using Keys = StagePool<T, key_stages, Dqk, queries>;
  using Values = StagePool<T, value_stages, Dv, queries>;
  static_assert(registers_suffice(threads, consumers, producer_registers, consumer_registers));
};

/// The first of the 16 rows of this warp's query.
template <class Shape>
__device__ __forceinline__ std::int64_t first_head_row(const SelectedWork<AttentionProblem<typename Shape::T>>& a,
                                                       const SelectedItem& item) {
  return (item.tile.row + threadIdx.x / 32) * a.problem.num_q_heads + item.group * Shape::heads_per_group;
}

/// The other branches' outputs, which come from memory, are asked for at a tile's beginning.
template <class Shape>
__device__ __forceinline__ void prefetch_branches(const Combination<typename Shape::T>& combination,
                                                  std::int64_t head_row) {
  constexpr int bytes = Shape::heads_per_group * Shape::d_v * static_cast<int>(sizeof(typename Shape::T));
  ptx::prefetch_l2(combination.o_cmp + head_row * Shape::d_v, bytes);
  ptx::prefetch_l2(combination.o_win + head_row * Shape::d_v, bytes);
}

template <class Shape>
__device__ __forceinline__ void write_rows(const SelectedWork<AttentionProblem<typename Shape::T>>& arguments,
                                           const Combination<typename Shape::T>& combination, std::int64_t head_row,
                                           float (&o)[Shape::d_v / 8][4], const SoftmaxRows& state) {
  using T = typename Shape::T;
  const auto& a = arguments.problem;
  const int lane = threadIdx.x % 32;
  const std::int64_t first = head_row * Shape::d_v;
  const auto& values = reinterpret_cast<float(&)[Shape::d_v / 2]>(o);
  if (combination.out) {
    LayerPack<T> cmp[2], win[2];  // two packs are read before one is waited for; more would spill
    Gates gates;
    for_each_pack<T>(
        values, state, [&](int row) { gates = combination.gates(head_row + row); },
        [&](int row, int quarter, int group, const LayerPack<T>& slc) {
          const std::int64_t at = first + row * Shape::d_v;
          if (group % 2 == 0) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              cmp[i] = load_pack(combination.o_cmp + at, (group + i) * 4 + quarter);
              win[i] = load_pack(combination.o_win + at, (group + i) * 4 + quarter);
            }
          }
          if (a.out) store_pack(a.out + at, group * 4 + quarter, slc);
          store_pack(combination.out + at, group * 4 + quarter, combined(gates, cmp[group % 2], slc, win[group % 2]));
        });
  } else {
    write_output(values, state, a.out + first, Shape::d_v);
  }
  if (lane % 4 == 0) {
    a.log_sum_exp[head_row + lane / 4] = state.log_sum_exp(0);
    a.log_sum_exp[head_row + lane / 4 + 8] = state.log_sum_exp(1);
  }
}

/// A warp's query and the block at `index` of a list, whose arrivals are `keys_at` and `values_at`. `visible` is the
/// number of the block's keys that the query sees, if not all. `seen`: what is known of the keys' arrival, and on
/// return of that of the next block's, `next_keys_at`, unless that is null.
template <class Shape>
__device__ __forceinline__ void attend_block(SoftmaxRows& state, float (&o)[Shape::d_v / 8][4], int visible,
                                             float scale_log2, Arrival& seen, const ArrivalWord* keys_at,
                                             const ArrivalWord* values_at, const ArrivalWord* next_keys_at,
                                             const SelectedMemory<Shape>& smem) {
  using T = typename Shape::T;
  const auto keys = smem.keys();
  const auto values = smem.values();
  float s[Shape::keys / 8][4];
  const int key_stage = keys.wait_for(keys_at, seen);
  multiply_keys<T, typename Shape::Queries::Tile, SwizzledTile<Shape::keys, Shape::d_qk>>(s, smem.queries().tile(), 0,
                                                                                          keys.tile(key_stage));
  keys.release(key_stage);
  if (visible < Shape::keys) {
#pragma unroll
    for (int n = 0; n < Shape::keys / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (n * 8 + static_cast<int>(threadIdx.x) % 4 * 2 + i % 2 >= visible) s[n][i] = -INFINITY;
  }
  float rescale[2];
  if (online_softmax_lazy_rescale(state, s, scale_log2, rescale)) rescale_output(o, rescale);
  seen = next_keys_at ? Arrival(next_keys_at) : Arrival();  // is there by the time it is needed
  const int value_stage = values.wait_for(values_at);
  multiply_values<T, SwizzledTile<Shape::keys, Shape::d_v>>(o, s, values.tile(value_stage));
  values.release(value_stage);
}

template <class Shape>
__device__ __forceinline__ void consumer_loop(const SelectedWork<AttentionProblem<typename Shape::T>>& a,
                                              const Combination<typename Shape::T>& combination,
                                              const CUtensorMap& queries, const UnionBuffers& buffers,
                                              const SelectedMemory<Shape>& smem) {
  const int query = threadIdx.x / 32;
  const bool is_leader = threadIdx.x % 32 == 0;
  const auto next_query = [&](int turn) {  // of lists: waits for it, asks for the query
    ptx::mbarrier_wait(smem.list_full(turn % Shape::lists), turn / Shape::lists % 2);
    const SelectedItem& item = buffers.item(turn % Shape::lists);
    if (item.given) smem.queries().prefetch(queries, item);
  };
  next_query(0);
#pragma unroll 1
  for (int turn = 0;; ++turn) {
    const int list_index = turn % Shape::lists;
    const SelectedItem& item = buffers.item(list_index);  // read again where it is needed: registers are short
    if (!item.given) return;
    if (combination.out && query < item.tile.rows && is_leader)
      prefetch_branches<Shape>(combination, first_head_row<Shape>(a, item));
    SoftmaxRows state;
    float o[Shape::d_v / 8][4] = {};
    const SelectedUnion list = buffers.list(Shape::lists, list_index);
    ptx::mbarrier_wait(smem.queries().full(), turn % 2);
    Arrival seen;
    for_each_chosen(list, query, [&](int index, int next) {
      const ArrivalWord* const keys = buffers.arrivals(ArrivalsOf::keys, list_index);
      attend_block<Shape>(state, o, item.position + query + 1 - list.blocks[index] * Shape::keys, a.problem.scale_log2,
                          seen, keys + index, buffers.arrivals(ArrivalsOf::values, list_index) + index,
                          next < 0 ? nullptr : keys + next, smem);
    });
    const std::int64_t head_row = query < item.tile.rows ? first_head_row<Shape>(a, item) : -1;
    __syncwarp();
    if (is_leader) ptx::mbarrier_arrive(smem.list_empty(ptx::opaque(turn) % Shape::lists));
    next_query(ptx::opaque(turn) + 1);  // which comes in while this one's output is written
    state.finish();
    if (head_row >= 0) write_rows<Shape>(a, combination, head_row, o, state);
  }
}

template <class Shape>
__global__ void __launch_bounds__(Shape::threads, 1)
    selected_attention_kernel(const __grid_constant__ SelectedWork<AttentionProblem<typename Shape::T>> arguments,
                              const __grid_constant__ Combination<typename Shape::T> combination,
                              const __grid_constant__ CUtensorMap queries, const __grid_constant__ BlockMaps blocks) {
  const SelectedMemory<Shape> smem{shared_memory<SelectedLayout<Shape>>()};
  const UnionBuffers buffers = smem.union_buffers(arguments.words, arguments.capacity);
  if (threadIdx.x == 0) smem.initialise();
  __syncthreads();
  if (threadIdx.x < Shape::consumers) {
    ptx::warpgroup_reg_alloc<Shape::consumer_registers>();
    consumer_loop<Shape>(arguments, combination, queries, buffers, smem);
  } else {
    ptx::warpgroup_reg_dealloc<Shape::producer_registers>();
    run_producer_warps<Shape>(arguments, blocks, buffers, smem);
  }
}

}  // namespace

template <>
bool serves(const SelectedAttention& a) {
  if (!serves(*a.config, a.dtype) || a.config->select_block != tokens_per_block) return false;
  return unions_fit<SelectedShape>(a);
}

template <>
void run_op(const SelectedAttention& a, const Gpu& gpu, cudaStream_t stream) {
  visit_shape<SelectedShape>(a, [&]<class Shape>(std::type_identity<Shape>) {
    using T = typename Shape::T;
    const CudaSegmentSchedule& schedule = cuda_schedule(a.queries);
    const ListView<QueryTile> tiles = schedule.tiles(Shape::queries);
    if (tiles.count == 0 || a.group_begin == a.group_end) return;

    AttentionProblem<T> problem = attention_problem<T>(a, schedule, tiles);
    problem.out = static_cast<T*>(a.out);
    problem.log_sum_exp = static_cast<float*>(a.log_sum_exp);
    const auto [work, blocks] = persistent_work(a, tiles.count, a.group_end - a.group_begin, gpu, stream);
    const auto arguments = selected_work<Shape>(a, problem, work);
    const std::size_t bytes = selected_shared_bytes<Shape>(a);
    allow_shared_memory(selected_attention_kernel<Shape>, bytes);
    selected_attention_kernel<Shape><<<blocks, Shape::threads, bytes, stream>>>(
        arguments, a.combine ? Combination<T>(*a.combine) : Combination<T>(),
        make_tensor_map(a.q, a.dtype,
                        rows_layout(schedule.rows, a.config->num_q_heads, Shape::d_qk, 1, Shape::heads_per_group)),
        block_maps(a));
    check_launch("selected_attention");
  });
}

}  // namespace cpnsa::cuda::sm90
