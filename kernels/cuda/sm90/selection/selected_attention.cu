// Selected attention: a tile of neighbouring queries of one KV head walks the union of their blocks once. Each of 12
// warps has 16 rows of mma.sync: with 16 heads per KV head they are one query, so no product is wasted on a query that
// did not choose the block; with fewer they are several queries, of which those that did not choose a block are masked;
// with more they are a part of a query's heads. Keys and values of each block come into free stages of shared memory
// through the copy engine, once for all of the queries that chose it. A warp takes 64 keys at once and reads its
// queries from shared memory. Thread blocks are persistent, and warps go on to the next tile one by one: its union has
// been built, and its first blocks have come in, meanwhile.

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
  static constexpr int warps = table.warps;
  static constexpr int keys = tokens_per_block;
  static constexpr int key_stages = table.key_stages;
  static constexpr int value_stages = table.value_stages;
  static constexpr int consumers =
      table.warps * 32;  ///< threads; of a warpgroup more two load and two warps build unions
  static constexpr int builders = 64;
  static constexpr int threads = consumers + 128;
  static constexpr int producer_registers = 56;
  static constexpr int consumer_registers = 152;
  static constexpr int lists = 2;
  using Queries = OwnQueries<T, warps, Dqk>;
  using Keys = StagePool<T, key_stages, Dqk, warps>;
  using Values = StagePool<T, value_stages, Dv, warps>;
  static_assert(registers_suffice(threads, consumers, producer_registers, consumer_registers));
};

template <class Shape>
using AttentionWork = SelectedWork<AttentionProblem<typename Shape::T>, Shape::heads_per_group>;

/// The other branches' outputs, which come from memory, are asked for at a tile's beginning; by a lane for each query.
template <class Shape>
__device__ __forceinline__ void prefetch_branches(const AttentionWork<Shape>& a,
                                                  const Combination<typename Shape::T>& combination,
                                                  const SelectedItem& item) {
  const auto rows = a.tiling.rows();
  const WarpRows own(a.tiling, item.group);
  const int lane = threadIdx.x % 32, d_v = layer_d_v<Shape>(a.problem);
  if (lane >= rows.queries() || own.query + lane >= item.tile.rows) return;
  const int first = rows.first_head(own.slice), end = (item.group + 1) * rows.heads_per_group();
  const int bytes = min(rows.heads(), end - first) * d_v * static_cast<int>(sizeof(typename Shape::T));
  const std::int64_t at = ((item.tile.row + own.query + lane) * a.problem.num_q_heads + first) * d_v;
  ptx::prefetch_l2(combination.o_cmp + at, bytes);
  ptx::prefetch_l2(combination.o_win + at, bytes);
}

/// Writes the results of those of a warp's rows whose head_row_at(row), in [rows, H], is not negative. What does not
/// exist is read as the first or last that does: loads that depend on it would take more registers.
template <class Shape, class HeadRowAt>
__device__ __forceinline__ void write_rows(const AttentionProblem<typename Shape::T>& a,
                                           const Combination<typename Shape::T>& combination,
                                           float (&o)[Shape::d_v / 8][4], const SoftmaxRows& state,
                                           HeadRowAt&& head_row_at) {
  using T = typename Shape::T;
  constexpr bool any = Shape::heads_per_group == any_heads;
  // Hidden, or what follows from it would take registers in the loop over tiles.
  const unsigned thread = any ? ptx::opaque(static_cast<int>(threadIdx.x)) : threadIdx.x;
  const int lane = thread % 32, d_v = layer_d_v<Shape>(a), packs = d_v / pack_items;
  const auto& values = reinterpret_cast<float(&)[Shape::d_v / 2]>(o);
  std::int64_t head_row = 0;
  bool exists = true;
  const auto begin_row = [&](int row) {
    const std::int64_t found = head_row_at(row);
    exists = !any || found >= 0;
    head_row = exists ? found : 0;
  };
  if (combination.out) {
    LayerPack<T> cmp[2], win[2];  // two packs are read before one is waited for; more would spill
    Gates gates;
    for_each_pack<T>(
        values, state,
        [&](int row) {
          begin_row(row);
          gates = combination.gates(head_row);
        },
        [&](int, int quarter, int group, const LayerPack<T>& slc) {
          const std::int64_t at = head_row * d_v;
          const int pack = group * 4 + quarter;
          if (group % 2 == 0) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              const int read = any ? min(pack + 4 * i, packs - 1) : pack + 4 * i;
              cmp[i] = load_pack(combination.o_cmp + at, read);
              win[i] = load_pack(combination.o_win + at, read);
            }
          }
          if (any && (!exists || pack >= packs)) return;
          if (a.out) store_pack(a.out + at, pack, slc);
          store_pack(combination.out + at, pack, combined(gates, cmp[group % 2], slc, win[group % 2]));
        },
        thread);
  } else {
    for_each_pack<T>(
        values, state, begin_row,
        [&](int, int quarter, int group, const LayerPack<T>& slc) {
          const int pack = group * 4 + quarter;
          if (!any || (exists && pack < packs)) store_pack(a.out + head_row * d_v, pack, slc);
        },
        thread);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    begin_row(lane / 4 + 8 * half);
    if (exists && lane % 4 == 0) a.log_sum_exp[head_row] = state.log_sum_exp(half);
  }
}

/// A warp's rows and the tile of keys at `index` of a list, whose arrivals are `keys_at` and `values_at`. `mask_keys`
/// masks the scores of keys that their rows do not see. `seen`: what is known of the keys' arrival, and on return of
/// that of the next tile's, `next_keys_at`, unless that is null.
template <class Shape, class MaskKeys>
__device__ __forceinline__ void attend_block(SoftmaxRows& state, float (&o)[Shape::d_v / 8][4], MaskKeys&& mask_keys,
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
  mask_keys(s);
  float rescale[2];
  if (online_softmax_lazy_rescale(state, s, scale_log2, rescale)) rescale_output(o, rescale);
  seen = next_keys_at ? Arrival(next_keys_at) : Arrival();  // is there by the time it is needed
  const int value_stage = values.wait_for(values_at);
  multiply_values<T, SwizzledTile<Shape::keys, Shape::d_v>>(o, s, values.tile(value_stage));
  values.release(value_stage);
}

template <class Shape>
__device__ __forceinline__ void consumer_loop(const AttentionWork<Shape>& a,
                                              const Combination<typename Shape::T>& combination,
                                              const CUtensorMap& queries,
                                              const UnionBuffers<Shape::heads_per_group>& buffers,
                                              const SelectedMemory<Shape>& smem) {
  constexpr bool any = Shape::heads_per_group == any_heads;
  const int lane = threadIdx.x % 32;
  const bool is_leader = lane == 0;
  const auto rows = a.tiling.rows();
  const auto next_rows = [&](int turn) {  // of lists: waits for it, asks for the rows of q
    ptx::mbarrier_wait(smem.list_full(turn % Shape::lists), turn / Shape::lists % 2);
    const SelectedItem& item = buffers.item(turn % Shape::lists);
    if (item.given) smem.queries().prefetch(queries, a.tiling, item);
  };
  next_rows(0);
#pragma unroll 1
  for (int turn = 0;; ++turn) {
    const int list_index = turn % Shape::lists;
    const SelectedItem& item = buffers.item(list_index);  // read again where it is needed: registers are short
    if (!item.given) return;
    if (combination.out) prefetch_branches<Shape>(a, combination, item);
    SoftmaxRows state;
    float o[Shape::d_v / 8][4] = {};
    const auto list = buffers.list(Shape::lists, list_index);
    const WarpRows own(a.tiling, item.group);
    ptx::mbarrier_wait(smem.queries().full(), turn % 2);
    Arrival seen;
    // In kernels for any number of heads addresses are computed where they are needed: registers are short.
    const auto index_now = [&] { return ptx::opaque(turn) % Shape::lists; };
    const auto list_now = [&] { return buffers.list(Shape::lists, index_now()); };
    const auto attend = [&](const int& at, int index, int next, auto&& mask_keys) {
      const ArrivalWord* const keys = buffers.arrivals(ArrivalsOf::keys, at);
      attend_block<Shape>(state, o, mask_keys, a.problem.scale_log2, seen, keys + index,
                          buffers.arrivals(ArrivalsOf::values, at) + index, next < 0 ? nullptr : keys + next, smem);
    };
    if constexpr (any) {
      ChosenEntries chosen(a, item, own);
      for_each_chosen(a.tiling, list_now, own.unit, [&](int index, int next) {
        attend(index_now(), index, next, [&](float(&s)[Shape::keys / 8][4]) {
          const int query = buffers.item(index_now()).position + own.unit * rows.queries();
          chosen.next(a, chosen_entries(a.tiling, list_now(), index, own.unit), query).mask(s, 0, -INFINITY);
        });
      });
    } else {
      for_each_chosen(
          a.tiling, [one = &list]() -> const auto& { return *one; }, own.unit,
          [&](int index, int next) {
            attend(list_index, index, next, [&](float(&s)[Shape::keys / 8][4]) {
              const int visible = item.position + own.query + 1 - list.blocks[index] * Shape::keys;
              if (visible >= Shape::keys) return;
#pragma unroll
              for (int n = 0; n < Shape::keys / 8; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i)
                  if (n * 8 + lane % 4 * 2 + i % 2 >= visible) s[n][i] = -INFINITY;
            });
          });
    }
    // Read before the builders overwrite the item.
    const WarpRows done(a.tiling, item.group, ptx::opaque(static_cast<int>(threadIdx.x)));
    const int queries_left = item.tile.rows - done.query;
    std::int64_t first_row = (item.tile.row + done.query) * a.problem.num_q_heads + rows.first_head(done.slice);
    if (queries_left <= 0) first_row = -1;
    int head_rows[2];  // those of the lane, in [rows, H]; 32 bits, because registers are short
#pragma unroll
    for (int half = 0; half < 2; ++half)
      head_rows[half] = static_cast<int>(
          head_row_of(rows, item.tile, done.slice, done.unit, lane / 4 + 8 * half, a.problem.num_q_heads));
    __syncwarp();
    if (is_leader) ptx::mbarrier_arrive(smem.list_empty(ptx::opaque(turn) % Shape::lists));
    next_rows(ptx::opaque(turn) + 1);  // which come in while this tile's output is written
    state.finish();
    if constexpr (any) {
      write_rows<Shape>(a.problem, combination, o, state,
                        [&](int row) { return row < 8 ? head_rows[0] : head_rows[1]; });
    } else if (first_row >= 0) {
      write_rows<Shape>(a.problem, combination, o, state, [&](int row) { return first_row + row; });
    }
  }
}

template <class Shape>
__global__ void __launch_bounds__(Shape::threads, 1)
    selected_attention_kernel(const __grid_constant__ AttentionWork<Shape> arguments,
                              const __grid_constant__ Combination<typename Shape::T> combination,
                              const __grid_constant__ CUtensorMap queries, const __grid_constant__ BlockMaps blocks) {
  const SelectedMemory<Shape> smem{shared_memory<SelectedLayout<Shape>>()};
  const auto buffers = smem.union_buffers(arguments.words, arguments.capacity);
  if (threadIdx.x == 0) smem.initialise();
  for (auto& rows : smem->q) zero_padding<16>(rows, arguments.tiling.rows());
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
  return selected_plan<SelectedShape>(a).row >= 0;
}

int selected_attention_queries(const Config& config, DType dtype, std::int64_t end_position) {
  return selected_plan<SelectedShape>(config, dtype, end_position).queries;
}

template <>
void run_op(const SelectedAttention& a, const Gpu& gpu, cudaStream_t stream) {
  visit_selected_shape<SelectedShape>(a, [&]<class Shape>(std::type_identity<Shape>, const SelectedPlan& plan) {
    using T = typename Shape::T;
    const CudaSegmentSchedule& schedule = cuda_schedule(a.queries);
    const ListView<QueryTile> tiles = schedule.tiles(plan.queries);
    if (tiles.count == 0 || a.group_begin == a.group_end) return;

    AttentionProblem<T> problem = attention_problem<T>(a, schedule, tiles);
    problem.out = static_cast<T*>(a.out);
    problem.log_sum_exp = static_cast<float*>(a.log_sum_exp);
    const auto [work, blocks] = persistent_work(a, tiles.count, a.group_end - a.group_begin, gpu, stream);
    const auto arguments = selected_work<Shape>(a, problem, work, plan);
    allow_shared_memory(selected_attention_kernel<Shape>, plan.shared_bytes);
    selected_attention_kernel<Shape><<<blocks, Shape::threads, plan.shared_bytes, stream>>>(
        arguments, a.combine ? Combination<T>(*a.combine) : Combination<T>(),
        make_tensor_map(a.q, a.dtype, warp_rows_layout(a, arguments.tiling.rows())),
        block_maps(a, arguments.tiling.keys_per_entry()));
    check_launch("selected_attention");
  });
}

}  // namespace cpnsa::cuda::sm90
