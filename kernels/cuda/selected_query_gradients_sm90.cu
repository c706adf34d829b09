// dQ of selected attention: 8 neighbouring queries of one KV head walk the union of their blocks once, a warp a query,
// as in the forward. A query's q and dout stay in registers beside its dQ, read from global memory once; keys and
// values of each block come into a free stage of shared memory through the copy engine. Thread blocks are persistent:
// three warps build the union of the next tile, and its first blocks come in, while the consumers finish one.

#include "kernels/cuda/block_maps_sm90.cuh"
#include "kernels/cuda/gradient_launch_sm90.cuh"
#include "kernels/cuda/selected_stages_sm90.cuh"
#include "kernels/cuda/selected_work_sm90.cuh"

namespace cpnsa::cuda::sm90 {
namespace {

template <class Element, int Dk, int Dv>
struct SelectedGradientShape {
  using T = Element;
  static constexpr int dk = Dk;
  static constexpr int dv = Dv;
  static constexpr int heads = 16;
  static constexpr int queries = 8;
  static constexpr int keys = 64;
  static constexpr int stages = Dk == 192 ? 4 : Dk == 128 ? 6 : 12;
  static constexpr int consumers = queries * 32;  ///< threads; of a warpgroup more one warp loads, three build unions
  static constexpr int builders = 96;
  static constexpr int threads = consumers + 128;
  static constexpr int producer_registers = 56;
  static constexpr int consumer_registers = 224;
  /// 192 channels of 16 heads do not fit in registers beside their gradient.
  static constexpr bool queries_in_registers = Dk <= 128;
  static constexpr int lists = 2;          ///< unions: one walked, one built
  static constexpr int keys_at_once = 32;  ///< whose scores are in registers
  static constexpr int rows = queries * heads;
  using Queries = SwizzledTile<rows, Dk>;
  using Keys = SwizzledTile<keys, Dk>;
  using Values = SwizzledTile<keys, Dv>;
  static constexpr int column_bytes = keys * 128;
  static constexpr int query_bytes = queries_in_registers ? 0 : Queries::bytes;
  static constexpr int tile_bytes = query_bytes + stages * (Keys::bytes + Values::bytes);
  static constexpr int barriers = 2 + 2 * lists + 2 * stages;
  static constexpr int shared_bytes = (tile_bytes + barriers * 8 + 15) / 16 * 16;
  static_assert(registers_suffice(threads, consumers, producer_registers, consumer_registers));
};

template <class Shape>
struct SelectedGradientShared {
  std::uint32_t base;

  __device__ std::uint32_t query() const { return base; }
  __device__ std::uint32_t key(int stage) const { return base + Shape::query_bytes + stage * Shape::Keys::bytes; }
  __device__ std::uint32_t value(int stage) const { return key(Shape::stages) + stage * Shape::Values::bytes; }
  __device__ std::uint32_t query_ready() const { return base + Shape::tile_bytes; }
  __device__ std::uint32_t query_free() const { return query_ready() + 8; }
  __device__ std::uint32_t list_ready(int list) const { return query_ready() + 16 + list * 8; }
  __device__ std::uint32_t list_free(int list) const { return list_ready(Shape::lists) + list * 8; }
  __device__ std::uint32_t ready(int stage) const { return list_free(Shape::lists) + stage * 8; }
  __device__ std::uint32_t free(int stage) const { return ready(Shape::stages) + stage * 8; }

  __device__ void initialise() const {
    ptx::barrier_init(query_ready(), 1);
    ptx::barrier_init(query_free(), Shape::queries);
    for (int list = 0; list < Shape::lists; ++list) {
      ptx::barrier_init(list_ready(list), Shape::builders);
      ptx::barrier_init(list_free(list), Shape::queries + 1);  // the consumers' warps and the loading thread
    }
    for (int stage = 0; stage < Shape::stages; ++stage) {
      ptx::barrier_init(ready(stage), 1);
      ptx::barrier_init(free(stage), Shape::queries);
    }
    ptx::fence_barrier_init();
  }
};

/// One thread: blocks of each tile, and queries that registers do not hold.
template <class Shape>
__device__ __forceinline__ void load(const SelectedWork<GradientProblem<typename Shape::T>>& a,
                                     const CUtensorMap& queries, const BlockMaps& blocks, const UnionBuffers& buffers,
                                     const SelectedGradientShared<Shape>& shared) {
  FreeStages<Shape> free_stages;
  RingPosition<Shape::lists> lists;
  int query_phase = 1;
#pragma unroll 1
  for (;; lists.advance(), query_phase ^= 1) {
    ptx::barrier_wait(shared.list_ready(lists.stage), lists.phase);
    const auto [tile, group, position, given] = buffers.item(lists.stage);
    if (!given) return;
    if constexpr (!Shape::queries_in_registers) {
      ptx::barrier_wait(shared.query_free(), query_phase);
      ptx::barrier_arrive_expect(shared.query_ready(), Shape::query_bytes);
      for (int column = 0; column < Shape::dk / 64; ++column)
        ptx::tensor_load(shared.query() + column * (Shape::rows * 128), &queries, shared.query_ready(), column * 64,
                         group * Shape::heads, static_cast<int>(tile.row));
    }
    const SelectedUnion list = buffers.list(Shape::lists, lists.stage);
    BlockLocation* const locations = buffers.locations(lists.stage);
    const int count = *list.count;
#pragma unroll 1
    for (int index = 0; index < count; ++index) {
      const BlockLocation at = locations[index];
      const int map = at >= 0 ? 0 : 1, c1 = at >= 0 ? group : 0, c2 = at >= 0 ? at : -1 - at;
      const auto choosers = static_cast<unsigned>(list.queries[index]);
      const Arrival arrival = free_stages.take(shared);
      const int stage = arrival.stage();
      const std::uint32_t ready = shared.ready(stage);
      ptx::barrier_arrive_expect(ready, Shape::Keys::bytes + Shape::Values::bytes);
      for (int column = 0; column < Shape::dk / 64; ++column)
        ptx::tensor_load(shared.key(stage) + column * Shape::column_bytes, &blocks.keys[map], ready, column * 64, c1,
                         c2);
      for (int column = 0; column < Shape::dv / 64; ++column)
        ptx::tensor_load(shared.value(stage) + column * Shape::column_bytes, &blocks.values[map], ready, column * 64,
                         c1, c2);
      free_stages.announce(arrival, choosers, &locations[index], shared);
    }
    ptx::barrier_arrive(shared.list_free(lists.stage));
  }
}

/// dQ += dS K of a warp's query and one block, of which it sees `visible` keys if not all.
template <class Shape>
__device__ __forceinline__ void add_block(float (&dq)[Shape::dk / 8][4], const std::uint32_t (&q)[Shape::dk / 16][4],
                                          const std::uint32_t (&dout)[Shape::dv / 16][4], const RowStatistics& row,
                                          int visible, float scale_log2, int stage,
                                          const SelectedGradientShared<Shape>& shared) {
  using T = typename Shape::T;
  const int lane = threadIdx.x % 32;
#pragma unroll 1
  for (int first = 0; first < Shape::keys; first += Shape::keys_at_once) {
    float s[Shape::keys_at_once / 8][4], dp[Shape::keys_at_once / 8][4];
    const std::uint32_t keys = shared.key(stage) + first * 128;
    if constexpr (Shape::queries_in_registers)
      multiply_keys<T, typename Shape::Keys>(s, q, keys);
    else
      multiply_keys<T, typename Shape::Queries, typename Shape::Keys>(s, shared.query(), threadIdx.x / 32 * 16, keys);
    multiply_keys<T, typename Shape::Values>(dp, dout, shared.value(stage) + first * 128);
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
    multiply_values<T, typename Shape::Keys>(dq, s, keys);
  }
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
__device__ __forceinline__ void consume(const SelectedWork<GradientProblem<typename Shape::T>>& a,
                                        const UnionBuffers& buffers, const SelectedGradientShared<Shape>& shared) {
  const int query = threadIdx.x / 32, lane = threadIdx.x % 32;
  const bool speaks = lane == 0;
  RingPosition<Shape::lists> lists;
  int query_phase = 0;
#pragma unroll 1
  for (;; lists.advance(), query_phase ^= 1) {
    ptx::barrier_wait(shared.list_ready(lists.stage), lists.phase);
    const auto [tile, group, first_position, given] = buffers.item(lists.stage);
    if (!given) return;
    const int position = first_position + query;
    const std::int64_t head_row = (tile.row + query) * a.problem.heads + group * Shape::heads;
    const RowStatistics row(a.problem, head_row, query < tile.rows);
    float dq[Shape::dk / 8][4] = {};
    std::uint32_t q[Shape::dk / 16][4], dout[Shape::dv / 16][4];
    read_rows(dout, a.problem.dout + head_row * Shape::dv, Shape::dv, query < tile.rows);
    if constexpr (Shape::queries_in_registers)
      read_rows(q, a.problem.q + head_row * Shape::dk, Shape::dk, query < tile.rows);
    else
      ptx::barrier_wait(shared.query_ready(), query_phase);
    for_each_chosen(buffers.list(Shape::lists, lists.stage), buffers.locations(lists.stage), query, shared,
                    [&](int block, int stage) {
                      add_block<Shape>(dq, q, dout, row, position + 1 - block * Shape::keys, a.problem.scale_log2,
                                       stage, shared);
                    });
    if (speaks) {
      ptx::barrier_arrive(shared.list_free(lists.stage));
      if constexpr (!Shape::queries_in_registers) ptx::barrier_arrive(shared.query_free());
    }
    if (query < tile.rows)
      add_query_rows(reinterpret_cast<float(&)[Shape::dk / 2]>(dq), a.problem.scale,
                     a.problem.dq + head_row * Shape::dk, Shape::dk);
  }
}

template <class Shape>
__global__ void __launch_bounds__(Shape::threads, 1)
    selected_query_gradients_kernel(const __grid_constant__ SelectedWork<GradientProblem<typename Shape::T>> arguments,
                                    const __grid_constant__ CUtensorMap queries,
                                    const __grid_constant__ BlockMaps blocks) {
  extern __shared__ unsigned char memory[];
  const std::uint32_t start_of_memory = ptx::shared_address(memory);
  const SelectedGradientShared<Shape> shared{(start_of_memory + 1023) / 1024 * 1024};
  const UnionBuffers buffers{memory + (shared.base - start_of_memory) + Shape::shared_bytes, arguments.words,
                             arguments.capacity};
  if (threadIdx.x == 0) shared.initialise();
  __syncthreads();
  if (threadIdx.x < Shape::consumers) {
    ptx::take_registers<Shape::consumer_registers>();
    consume<Shape>(arguments, buffers, shared);
  } else {
    ptx::give_registers<Shape::producer_registers>();
    if (threadIdx.x == Shape::consumers)
      load<Shape>(arguments, queries, blocks, buffers, shared);
    else if (threadIdx.x >= Shape::threads - Shape::builders)
      build_unions<Shape>(arguments, buffers, shared);
  }
}

}  // namespace

bool serves(const SelectedAttentionBackward& a) {
  if (!serves_attention(*a.config) || a.config->select_block != 64) return false;
  bool fits = false;
  visit_shape<SelectedGradientShape>(
      a, [&]<class Shape>(std::type_identity<Shape>) { fits = selected_shared_bytes<Shape>(a) <= most_shared_bytes; });
  return fits;
}

void selected_query_gradients(const SelectedAttentionBackward& a, cudaStream_t stream) {
  visit_shape<SelectedGradientShape>(a, [&]<class Shape>(std::type_identity<Shape>) {
    using T = typename Shape::T;
    const ListView<QueryTile> tiles = cuda_schedule(a.queries).tiles(Shape::queries);
    if (tiles.count == 0 || a.head_begin == a.head_end) return;
    const auto [work, blocks] = persistent_work(a, tiles.count, a.head_end - a.head_begin, stream);
    const auto arguments = selected_work<Shape>(a, gradient_problem<T>(a, tiles), work);
    const std::size_t bytes = selected_shared_bytes<Shape>(a);
    auto* const kernel = selected_query_gradients_kernel<Shape>;
    allow_shared_memory(kernel, bytes);
    kernel<<<blocks, Shape::threads, bytes, stream>>>(arguments, row_maps(a, Shape::queries).queries, block_maps(a));
    check_launch("selected_query_gradients_sm90");
  });
}

}  // namespace cpnsa::cuda::sm90
