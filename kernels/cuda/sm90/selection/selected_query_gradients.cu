// dQ of selected attention: a tile of neighbouring queries of one KV head walks the union of their blocks once, 16
// (query, head) rows per warp, as in the forward. A warp's rows of q and dout stay in registers beside their dQ, read
// from global memory once; keys and values of each block come into free stages of shared memory through the copy
// engine. Thread blocks are persistent, and warps go on to the next tile one by one: its union has been built, and its
// first blocks have come in, meanwhile.

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
  static constexpr int warps = table.warps;
  static constexpr int keys = tokens_per_block;
  static constexpr int stages = table.stages;
  static constexpr int consumers =
      table.warps * 32;  ///< threads; of a warpgroup more two load and two warps build unions
  static constexpr int builders = 64;
  static constexpr int threads = consumers + 128;
  static constexpr int producer_registers = 56;
  static constexpr int consumer_registers = 224;
  static constexpr bool queries_in_registers = table.queries_in_registers;
  static constexpr int lists = 2;
  static constexpr int keys_at_once = 32;  ///< whose scores are in registers
  using Queries = OwnQueries<T, queries_in_registers ? 0 : warps, Dqk>;
  using Keys = StagePool<T, stages, Dqk, warps>;
  using Values = StagePool<T, stages, Dv, warps>;
  static_assert(registers_suffice(threads, consumers, producer_registers, consumer_registers));
};

template <class Shape>
using GradientWork = SelectedWork<GradientProblem<typename Shape::T>, Shape::heads_per_group>;

/// dQ += dS K of a warp's rows and a tile of keys. `mask_keys` masks dS of keys that their rows do not see.
template <class Shape, class MaskKeys>
__device__ __forceinline__ void add_block(float (&dq)[Shape::d_qk / 8][4],
                                          const std::uint32_t (&q)[Shape::d_qk / 16][4],
                                          const std::uint32_t (&dout)[Shape::d_v / 16][4], const RowStatistics& row,
                                          MaskKeys&& mask_keys, float scale_log2, const ArrivalWord* key_arrival,
                                          const ArrivalWord* value_arrival, const SelectedMemory<Shape>& smem) {
  using T = typename Shape::T;
  using KeyTile = SwizzledTile<Shape::keys, Shape::d_qk>;
  const int key_stage = smem.keys().wait_for(key_arrival), value_stage = smem.values().wait_for(value_arrival);
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
    mask_keys(s, first);
    multiply_values<T, KeyTile>(dq, s, keys);
  }
  smem.keys().release(key_stage);
  smem.values().release(value_stage);
}

/// A warp's 16 rows of `dim` elements from global memory as first operands, zeros where a row, of those of `of_lane` in
/// [rows, H], or an element does not exist. In kernels for a fixed number of heads `dim` is that of the tile.
template <class T, bool FixedDim, int Steps>
__device__ __forceinline__ void read_rows(std::uint32_t (&a)[Steps][4], const T* rows, int dim,
                                          const std::int64_t (&of_lane)[2]) {
  const int column = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const T* const from = rows + of_lane[half] * dim + column;
#pragma unroll
    for (int step = 0; step < Steps; ++step)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int channel = step * 16 + i * 8;
        const bool exists = of_lane[half] >= 0 && (FixedDim || channel < dim);
        a[step][2 * i + half] = exists ? __ldg(reinterpret_cast<const std::uint32_t*>(from + channel)) : 0;
      }
  }
}

template <class Shape>
__device__ __forceinline__ void consumer_loop(const GradientWork<Shape>& a, const CUtensorMap& queries,
                                              const UnionBuffers<Shape::heads_per_group>& buffers,
                                              const SelectedMemory<Shape>& smem) {
  constexpr bool any = Shape::heads_per_group == any_heads;
  const int lane = threadIdx.x % 32, d_qk = layer_d_qk<Shape>(a.problem), d_v = layer_d_v<Shape>(a.problem);
  const auto rows = a.tiling.rows();
  RingPosition<Shape::lists> lists;
  int query_phase = 0;
#pragma unroll 1
  for (;; lists.advance(), query_phase ^= 1) {
    ptx::mbarrier_wait(smem.list_full(lists.stage), lists.phase);
    const SelectedItem& item = buffers.item(lists.stage);  // read again where it is needed: registers are short
    if (!item.given) return;
    if constexpr (!Shape::queries_in_registers) smem.queries().prefetch(queries, a.tiling, item);
    const WarpRows own(a.tiling, item.group);
    const auto head_row = [&](int row) {
      const WarpRows warp(a.tiling, item.group, ptx::opaque(static_cast<int>(threadIdx.x)));
      return head_row_of(rows, item.tile, warp.slice, warp.unit, row, a.problem.num_q_heads);
    };
    const std::int64_t head_rows[2] = {head_row(lane / 4), head_row(lane / 4 + 8)};
    const RowStatistics row(a.problem, head_rows);
    float dq[Shape::d_qk / 8][4] = {};
    std::uint32_t q[Shape::d_qk / 16][4], dout[Shape::d_v / 16][4];
    read_rows<typename Shape::T, !any>(dout, a.problem.dout, d_v, head_rows);
    if constexpr (Shape::queries_in_registers)
      read_rows<typename Shape::T, !any>(q, a.problem.q, d_qk, head_rows);
    else
      ptx::mbarrier_wait(smem.queries().full(), query_phase);
    const auto list = buffers.list(Shape::lists, lists.stage);
    const auto add = [&](int index, auto&& mask_keys) {
      add_block<Shape>(dq, q, dout, row, mask_keys, a.problem.scale_log2,
                       buffers.arrivals(ArrivalsOf::keys, lists.stage) + index,
                       buffers.arrivals(ArrivalsOf::values, lists.stage) + index, smem);
    };
    const auto list_of_tile = [one = &list]() -> const auto& {
      return *one;
    };
    using Scores = float[Shape::keys_at_once / 8][4];
    if constexpr (any) {
      ChosenEntries chosen(a, item, own);
      for_each_chosen(a.tiling, list_of_tile, own.unit, [&](int index, int) {
        const RowKeys keys = chosen.next(a, chosen_entries(a.tiling, list, index, own.unit), item.position + own.query);
        add(index, [&](Scores& s, int first) { keys.mask(s, first, 0.f); });
      });
    } else {
      for_each_chosen(a.tiling, list_of_tile, own.unit, [&](int index, int) {
        const int visible = item.position + own.query + 1 - list.blocks[index] * Shape::keys;
        add(index, [&](Scores& s, int first) {
          if (visible >= first + Shape::keys_at_once) return;
#pragma unroll
          for (int n = 0; n < Shape::keys_at_once / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i)
              if (first + n * 8 + lane % 4 * 2 + i % 2 >= visible) s[n][i] = 0.f;
        });
      });
    }
    const std::int64_t to_rows[2] = {head_row(lane / 4), head_row(lane / 4 + 8)};
    __syncwarp();
    if (lane == 0) ptx::mbarrier_arrive(smem.list_empty(lists.stage));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (to_rows[half] < 0) continue;
      float* const to = a.problem.dq + to_rows[half] * d_qk + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < Shape::d_qk / 8; ++n)
        if (!any || n * 8 < d_qk)
          ptx::red_add(to + n * 8, dq[n][2 * half] * a.problem.scale, dq[n][2 * half + 1] * a.problem.scale);
    }
  }
}

template <class Shape>
__global__ void __launch_bounds__(Shape::threads, 1)
    selected_query_gradients_kernel(const __grid_constant__ GradientWork<Shape> arguments,
                                    const __grid_constant__ CUtensorMap queries,
                                    const __grid_constant__ BlockMaps blocks) {
  const SelectedMemory<Shape> smem{shared_memory<SelectedLayout<Shape>>()};
  const auto buffers = smem.union_buffers(arguments.words, arguments.capacity);
  if (threadIdx.x == 0) smem.initialise();
  if constexpr (!Shape::queries_in_registers)
    for (auto& rows : smem->q) zero_padding<16>(rows, arguments.tiling.rows());
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
  return selected_plan<SelectedGradientShape>(a).row >= 0;
}

int selected_query_gradients_queries(const Config& config, DType dtype, std::int64_t end_position) {
  return selected_plan<SelectedGradientShape>(config, dtype, end_position).queries;
}

void selected_query_gradients(const SelectedAttentionBackward& a, const Gpu& gpu, cudaStream_t stream) {
  visit_selected_shape<SelectedGradientShape>(a, [&]<class Shape>(std::type_identity<Shape>, const SelectedPlan& plan) {
    using T = typename Shape::T;
    const ListView<QueryTile> tiles = cuda_schedule(a.queries).tiles(plan.queries);
    if (tiles.count == 0 || a.group_begin == a.group_end) return;
    const auto [work, blocks] = persistent_work(a, tiles.count, a.group_end - a.group_begin, gpu, stream);
    const auto arguments = selected_work<Shape>(a, gradient_problem<T>(a, tiles), work, plan);
    auto* const kernel = selected_query_gradients_kernel<Shape>;
    allow_shared_memory(kernel, plan.shared_bytes);
    kernel<<<blocks, Shape::threads, plan.shared_bytes, stream>>>(
        arguments, make_tensor_map(a.q, a.dtype, warp_rows_layout(a, arguments.tiling.rows())),
        block_maps(a, arguments.tiling.keys_per_entry()));
    check_launch("selected_query_gradients");
  });
}

}  // namespace cpnsa::cuda::sm90
