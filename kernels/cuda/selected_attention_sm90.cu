// Selected attention: 12 neighbouring queries of one KV head walk the union of their blocks once, a warp a query: its
// 16 heads are the rows of mma.sync, so no product is wasted on a query that did not choose the block. Keys and values
// of each block come into a free stage of shared memory through the copy engine, once for all of the queries that chose
// it. A warp takes a block's 64 keys at once where registers hold the scores beside the output, and reads its query
// from shared memory. Thread blocks are persistent: three warps build the union of the next tile, and its first blocks
// come in, while the consumers finish one.

#include "kernels/cuda/combination.cuh"
#include "kernels/cuda/selected_stages_sm90.cuh"
#include "kernels/cuda/selected_work_sm90.cuh"

namespace cpnsa::cuda::sm90 {
namespace {

template <class Element, int Dk, int Dv>
struct SelectedShape {
  using T = Element;
  static constexpr int dk = Dk;
  static constexpr int dv = Dv;
  static constexpr int heads = 16;
  static constexpr int queries = 12;
  static constexpr int keys = 64;
  static constexpr int stages = Dk == 192 ? 3 : Dk == 128 ? 5 : 8;
  static constexpr int consumers = queries * 32;  ///< threads; of a warpgroup more one warp loads, three build unions
  static constexpr int builders = 96;
  static constexpr int threads = consumers + 128;
  static constexpr int producer_registers = 56;
  static constexpr int consumer_registers = 152;
  static constexpr int lists = 2;                           ///< unions: one walked, one built
  static constexpr int keys_at_once = Dk == 192 ? 32 : 64;  ///< whose scores are in registers; more would spill
  using Queries = SwizzledTile<queries * heads, Dk>;
  using Keys = SwizzledTile<keys, Dk>;
  using Values = SwizzledTile<keys, Dv>;
  static constexpr int query_bytes = queries * heads * Dk * 2;
  static constexpr int query_column_bytes = queries * heads * 128;  ///< of 64 channels
  static constexpr int key_bytes = keys * Dk * 2;
  static constexpr int value_bytes = keys * Dv * 2;
  static constexpr int column_bytes = keys * 128;
  static constexpr int tile_bytes = query_bytes + stages * (key_bytes + value_bytes);
  static constexpr int barriers = 2 + 2 * lists + 2 * stages;
  static constexpr int shared_bytes = (tile_bytes + barriers * 8 + 15) / 16 * 16;
  static_assert(registers_suffice(threads, consumers, producer_registers, consumer_registers));
};

template <class Shape>
struct SelectedShared {
  std::uint32_t base;

  __device__ std::uint32_t query() const { return base; }
  __device__ std::uint32_t key(int stage) const { return base + Shape::query_bytes + stage * Shape::key_bytes; }
  __device__ std::uint32_t value(int stage) const { return key(Shape::stages) + stage * Shape::value_bytes; }
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

/// Where blocks are copied from.
struct BlockMaps {
  CUtensorMap queries;
  CUtensorMap own_keys;  ///< boxes of 64 rows of one head
  CUtensorMap own_values;
  CUtensorMap pool_keys;  ///< boxes of a slot's 64 rows
  CUtensorMap pool_values;
};

/// One thread: queries and blocks of each tile. The consumers hold on to their queries to the end of a tile: the next
/// ones come last of what the stages have room for beside the tile's last block.
template <class Shape>
__device__ __forceinline__ void load(const SelectedWork<AttentionProblem<typename Shape::T>>& a, const BlockMaps& maps,
                                     const UnionBuffers& buffers, const SelectedShared<Shape>& shared) {
  FreeStages<Shape> free_stages;
  RingPosition<Shape::lists> lists;
  int query_phase = 1;
#pragma unroll 1
  for (;; lists.advance(), query_phase ^= 1) {
    ptx::barrier_wait(shared.list_ready(lists.stage), lists.phase);
    const SelectedItem& item = buffers.item(lists.stage);
    if (!item.given) return;
    const int group = item.group, row = static_cast<int>(item.tile.row);
    const auto load_queries = [&] {
      ptx::barrier_wait(shared.query_free(), query_phase);
      ptx::barrier_arrive_expect(shared.query_ready(), Shape::query_bytes);
      for (int column = 0; column < Shape::dk / 64; ++column)
        ptx::tensor_load(shared.query() + column * Shape::query_column_bytes, &maps.queries, shared.query_ready(),
                         column * 64, group * Shape::heads, row);
    };
    const SelectedUnion list = buffers.list(Shape::lists, lists.stage);
    const int count = *list.count;
    BlockLocation* const locations = buffers.locations(lists.stage);
    const int before_queries = min(count, Shape::stages - 1);
#pragma unroll 1
    for (int index = 0; index < count; ++index) {
      if (index == before_queries) load_queries();
      const BlockLocation at = locations[index];
      const bool own = at >= 0;
      const int c1 = own ? group : 0, c2 = own ? at : -1 - at;
      const auto choosers = static_cast<unsigned>(list.queries[index]);
      const Arrival arrival = free_stages.take(shared);
      const int stage = arrival.stage();
      const std::uint32_t ready = shared.ready(stage);
      ptx::barrier_arrive_expect(ready, Shape::key_bytes + Shape::value_bytes);
      for (int column = 0; column < Shape::dk / 64; ++column)
        ptx::tensor_load(shared.key(stage) + column * Shape::column_bytes, own ? &maps.own_keys : &maps.pool_keys,
                         ready, column * 64, c1, c2);
      for (int column = 0; column < Shape::dv / 64; ++column)
        ptx::tensor_load(shared.value(stage) + column * Shape::column_bytes, own ? &maps.own_values : &maps.pool_values,
                         ready, column * 64, c1, c2);
      free_stages.announce(arrival, choosers, &locations[index], shared);
    }
    if (before_queries == count) load_queries();
    ptx::barrier_arrive(shared.list_free(lists.stage));
  }
}

/// The first of the 16 rows of this warp's query.
template <class Shape>
__device__ __forceinline__ std::int64_t first_head_row(const SelectedWork<AttentionProblem<typename Shape::T>>& a,
                                                       const SelectedItem& item) {
  return (item.tile.row + threadIdx.x / 32) * a.problem.heads + item.group * Shape::heads;
}

/// The other branches' outputs, which come from memory, are asked for at a tile's beginning.
template <class Shape>
__device__ __forceinline__ void prefetch_branches(const Combination<typename Shape::T>& combination,
                                                  std::int64_t head_row) {
  constexpr int bytes = Shape::heads * Shape::dv * 2;
  ptx::prefetch(combination.o_cmp + head_row * Shape::dv, bytes);
  ptx::prefetch(combination.o_win + head_row * Shape::dv, bytes);
}

template <class Shape>
__device__ __forceinline__ void write_rows(const SelectedWork<AttentionProblem<typename Shape::T>>& arguments,
                                           const Combination<typename Shape::T>& combination, std::int64_t head_row,
                                           float (&o)[Shape::dv / 8][4], const SoftmaxRows& state) {
  using T = typename Shape::T;
  const auto& a = arguments.problem;
  const int lane = threadIdx.x % 32;
  const std::int64_t first = head_row * Shape::dv;
  const auto& values = reinterpret_cast<float(&)[Shape::dv / 2]>(o);
  if (combination.out) {
    LayerPack<T> cmp[2], win[2];  // two packs are read before one is waited for; more would spill
    Gates gates;
    for_each_pack<T>(
        values, state, [&](int row) { gates = combination.gates(head_row + row); },
        [&](int row, int quarter, int group, const LayerPack<T>& slc) {
          const std::int64_t at = first + row * Shape::dv;
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
    write_output(values, state, a.out + first, Shape::dv);
  }
  if (lane % 4 == 0) {
    a.log_sum_exp[head_row + lane / 4] = state.log_sum_exp(0);
    a.log_sum_exp[head_row + lane / 4 + 8] = state.log_sum_exp(1);
  }
}

/// A warp's query and one block: `visible` is the number of its keys that the query sees, if not all.
template <class Shape>
__device__ __forceinline__ void attend_block(SoftmaxRows& state, float (&o)[Shape::dv / 8][4], int visible,
                                             float scale_log2, int stage, const SelectedShared<Shape>& shared) {
  using T = typename Shape::T;
  constexpr int keys_at_once = Shape::keys_at_once;
#pragma unroll 1
  for (int first = 0; first < Shape::keys; first += keys_at_once) {
    float s[keys_at_once / 8][4];
    multiply_keys<T, typename Shape::Queries, typename Shape::Keys>(s, shared.query(), threadIdx.x / 32 * 16,
                                                                    shared.key(stage) + first * 128);
    if (visible < first + keys_at_once) {
#pragma unroll
      for (int n = 0; n < keys_at_once / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (first + n * 8 + static_cast<int>(threadIdx.x) % 4 * 2 + i % 2 >= visible) s[n][i] = -INFINITY;
    }
    update_softmax_seldom(state, s, scale_log2, o);
    multiply_values<T, typename Shape::Values>(o, s, shared.value(stage) + first * 128);
  }
}

template <class Shape>
__device__ __forceinline__ void consume(const SelectedWork<AttentionProblem<typename Shape::T>>& a,
                                        const Combination<typename Shape::T>& combination, const UnionBuffers& buffers,
                                        const SelectedShared<Shape>& shared) {
  const int query = threadIdx.x / 32;
  const bool speaks = threadIdx.x % 32 == 0;
  int turns_of_lists = 0;
#pragma unroll 1
  for (;; ++turns_of_lists) {
    const int list_index = turns_of_lists % Shape::lists;
    ptx::barrier_wait(shared.list_ready(list_index), turns_of_lists / Shape::lists % 2);
    const SelectedItem& item = buffers.item(list_index);  // read again where it is needed: registers are short
    if (!item.given) return;
    if (combination.out && query < item.tile.rows && speaks)
      prefetch_branches<Shape>(combination, first_head_row<Shape>(a, item));
    SoftmaxRows state;
    float o[Shape::dv / 8][4] = {};
    ptx::barrier_wait(shared.query_ready(), turns_of_lists % 2);
    const SelectedUnion list = buffers.list(Shape::lists, list_index);
    for_each_chosen(list, buffers.locations(list_index), query, shared, [&](int block, int stage) {
      attend_block<Shape>(state, o, item.position + query + 1 - block * Shape::keys, a.problem.scale_log2, stage,
                          shared);
    });
    const std::int64_t head_row = query < item.tile.rows ? first_head_row<Shape>(a, item) : -1;
    __syncwarp();
    if (speaks) {
      ptx::barrier_arrive(shared.list_free(ptx::anew(turns_of_lists) % Shape::lists));
      ptx::barrier_arrive(shared.query_free());
    }
    state.finish();
    if (head_row >= 0) write_rows<Shape>(a, combination, head_row, o, state);
  }
}

template <class Shape>
__global__ void __launch_bounds__(Shape::threads, 1)
    selected_attention_kernel(const __grid_constant__ SelectedWork<AttentionProblem<typename Shape::T>> arguments,
                              const __grid_constant__ Combination<typename Shape::T> combination,
                              const __grid_constant__ BlockMaps maps) {
  extern __shared__ unsigned char memory[];
  const std::uint32_t start_of_memory = ptx::shared_address(memory);
  const SelectedShared<Shape> shared{(start_of_memory + 1023) / 1024 * 1024};
  const UnionBuffers buffers{memory + (shared.base - start_of_memory) + Shape::shared_bytes, arguments.words,
                             arguments.capacity};
  if (threadIdx.x == 0) shared.initialise();
  __syncthreads();
  if (threadIdx.x < Shape::consumers) {
    ptx::take_registers<Shape::consumer_registers>();
    consume<Shape>(arguments, combination, buffers, shared);
  } else {
    ptx::give_registers<Shape::producer_registers>();
    if (threadIdx.x == Shape::consumers)
      load<Shape>(arguments, maps, buffers, shared);
    else if (threadIdx.x >= Shape::threads - Shape::builders)
      build_unions<Shape>(arguments, buffers, shared);
  }
}

template <class Shape>
BlockMaps block_maps(const SelectedAttention& a, std::int64_t rows) {
  const Config& config = *a.config;
  const std::int64_t groups = config.num_kv_heads, tokens = Shape::keys, slot = tokens * (Shape::dk + Shape::dv);
  const auto own = [&](const void* tensor, std::int64_t dim) {
    return make_tensor_map(tensor, a.dtype, rows_layout(rows, groups, dim, Shape::keys, 1));
  };
  const auto pool = [&](std::int64_t offset, std::int64_t dim) {
    // How many slots are in use is not told; the table names none beyond them.
    constexpr std::int64_t slots = std::int64_t{1} << 24;
    const TensorLayout layout{{dim, tokens, slots}, {dim, slot}, {Shape::keys, 1}};
    return make_tensor_map(static_cast<const typename Shape::T*>(a.pool) + offset, a.dtype, layout);
  };
  BlockMaps maps{};
  maps.queries =
      make_tensor_map(a.q, a.dtype, rows_layout(rows, config.num_q_heads, Shape::dk, Shape::queries, Shape::heads));
  maps.own_keys = own(a.k, Shape::dk);
  maps.own_values = own(a.v, Shape::dv);
  // A rank that fetches nothing has no pool.
  maps.pool_keys = a.pool ? pool(0, Shape::dk) : maps.own_keys;
  maps.pool_values = a.pool ? pool(tokens * Shape::dk, Shape::dv) : maps.own_values;
  return maps;
}

}  // namespace

bool serves(const SelectedAttention& a) {
  if (!serves_attention(*a.config) || a.config->select_block != 64) return false;
  bool fits = false;
  visit_shape<SelectedShape>(
      a, [&]<class Shape>(std::type_identity<Shape>) { fits = selected_shared_bytes<Shape>(a) <= most_shared_bytes; });
  return fits;
}

void selected_attention(const SelectedAttention& a, cudaStream_t stream) {
  visit_shape<SelectedShape>(a, [&]<class Shape>(std::type_identity<Shape>) {
    using T = typename Shape::T;
    const CudaSegmentSchedule& schedule = cuda_schedule(a.queries);
    const ListView<QueryTile> tiles = schedule.tiles(Shape::queries);
    if (tiles.count == 0 || a.head_begin == a.head_end) return;

    AttentionProblem<T> problem = attention_problem<T>(a, schedule, tiles);
    problem.out = static_cast<T*>(a.out);
    problem.log_sum_exp = static_cast<float*>(a.log_sum_exp);
    const auto [work, blocks] = persistent_work(a, tiles.count, a.head_end - a.head_begin, stream);
    const auto arguments = selected_work<Shape>(a, problem, work);
    const std::size_t bytes = selected_shared_bytes<Shape>(a);
    allow_shared_memory(selected_attention_kernel<Shape>, bytes);
    selected_attention_kernel<Shape><<<blocks, Shape::threads, bytes, stream>>>(
        arguments, a.combine ? Combination<T>(*a.combine) : Combination<T>(), block_maps<Shape>(a, schedule.rows));
    check_launch("selected_attention_sm90");
  });
}

}  // namespace cpnsa::cuda::sm90
