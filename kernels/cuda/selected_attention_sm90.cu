// Selected attention: 12 neighbouring queries of one KV head walk the union of their blocks once, a warp a query: its
// 16 heads are the rows of mma.sync, so no product is wasted on a query that did not choose the block. Keys and values
// of each block come into a ring in shared memory through the copy engine; the queries stay in registers. What a query
// reads is shared by those of its neighbours that chose the same blocks.

#include "kernels/cuda/attention_launch_sm90.cuh"
#include "kernels/cuda/selected_union.cuh"

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
  static constexpr int consumers = queries * 32;  ///< threads; those of a warpgroup more produce
  static constexpr int threads = consumers + 128;
  static constexpr int producer_registers = 32;
  static constexpr int consumer_registers = 160;
  /// 192 channels of 16 heads do not fit in registers beside the output.
  static constexpr bool queries_in_registers = Dk <= 128;
  static constexpr int keys_at_once = 32;  ///< whose scores are in registers
  using Queries = SwizzledTile<queries * heads, Dk>;
  using Keys = SwizzledTile<keys, Dk>;
  using Values = SwizzledTile<keys, Dv>;
  static constexpr int query_bytes = queries * heads * Dk * 2;
  static constexpr int query_column_bytes = queries * heads * 128;  ///< of 64 channels
  static constexpr int key_bytes = keys * Dk * 2;
  static constexpr int value_bytes = keys * Dv * 2;
  static constexpr int column_bytes = keys * 128;
  static constexpr int tile_bytes = query_bytes + stages * (key_bytes + value_bytes);
  static constexpr int barriers = 1 + 2 * stages;
  static constexpr int shared_bytes = tile_bytes + barriers * 8;
};

template <class Shape>
struct SelectedShared {
  std::uint32_t base;

  __device__ std::uint32_t query() const { return base; }
  __device__ std::uint32_t key(int stage) const { return base + Shape::query_bytes + stage * Shape::key_bytes; }
  __device__ std::uint32_t value(int stage) const { return key(Shape::stages) + stage * Shape::value_bytes; }
  __device__ std::uint32_t query_ready() const { return base + Shape::tile_bytes; }
  __device__ std::uint32_t ready(int stage) const { return query_ready() + 8 + stage * 8; }
  __device__ std::uint32_t free(int stage) const { return ready(Shape::stages) + stage * 8; }

  __device__ void initialise() const {
    ptx::barrier_init(query_ready(), 1);
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

template <class T>
struct SelectedArguments {
  AttentionProblem<T> problem;
  const BlockLocation* table;    ///< [B, G]
  const std::int32_t* selected;  ///< [rows, G, n]
  int head_begin;
  int select_count;
  int words;
  int capacity;
};

template <class Shape>
__device__ __forceinline__ void load_queries(const BlockMaps& maps, int group, int row,
                                             const SelectedShared<Shape>& shared) {
  ptx::barrier_arrive_expect(shared.query_ready(), Shape::query_bytes);
  for (int column = 0; column < Shape::dk / 64; ++column)
    ptx::tensor_load(shared.query() + column * Shape::query_column_bytes, &maps.queries, shared.query_ready(),
                     column * 64, group * Shape::heads, row);
}

template <class Shape>
__device__ __forceinline__ void produce(const BlockMaps& maps, const SelectedUnion& list,
                                        const BlockLocation* locations, int group,
                                        const SelectedShared<Shape>& shared) {
  RingPosition<Shape::stages> ring;
  const int count = *list.count;
#pragma unroll 1
  for (int index = 0; index < count; ++index, ring.advance()) {
    const BlockLocation at = locations[index];
    const bool own = at >= 0;
    const int c1 = own ? group : 0, c2 = own ? at : -1 - at;
    ptx::barrier_wait(shared.free(ring.stage), ring.phase ^ 1);
    const std::uint32_t ready = shared.ready(ring.stage);
    ptx::barrier_arrive_expect(ready, Shape::key_bytes + Shape::value_bytes);
    for (int column = 0; column < Shape::dk / 64; ++column)
      ptx::tensor_load(shared.key(ring.stage) + column * Shape::column_bytes, own ? &maps.own_keys : &maps.pool_keys,
                       ready, column * 64, c1, c2);
    for (int column = 0; column < Shape::dv / 64; ++column)
      ptx::tensor_load(shared.value(ring.stage) + column * Shape::column_bytes,
                       own ? &maps.own_values : &maps.pool_values, ready, column * 64, c1, c2);
  }
}

/// The block's queries; read again where they are needed, for registers are scarce in between.
template <class T>
__device__ __forceinline__ QueryTile own_tile(const AttentionProblem<T>& a) {
  return a.tiles[gridDim.x - 1 - ptx::block_index_again()];
}

template <class Shape>
__device__ __forceinline__ void write_rows(const SelectedArguments<typename Shape::T>& arguments,
                                           float (&o)[Shape::dv / 8][4], const SoftmaxRows& state) {
  const auto& a = arguments.problem;
  const QueryTile tile = own_tile(a);
  const int query = threadIdx.x / 32, lane = threadIdx.x % 32, group = arguments.head_begin + blockIdx.y;
  if (query >= tile.rows) return;
  const std::int64_t head_row = (tile.row + query) * a.heads + group * Shape::heads;
  write_output(reinterpret_cast<float(&)[Shape::dv / 2]>(o), state, a.out + head_row * Shape::dv, Shape::dv);
  if (lane % 4 == 0) {
    a.log_sum_exp[head_row + lane / 4] = state.log_sum_exp(0);
    a.log_sum_exp[head_row + lane / 4 + 8] = state.log_sum_exp(1);
  }
}

template <class Shape>
__device__ __forceinline__ void consume(const SelectedArguments<typename Shape::T>& arguments, int start,
                                        const SelectedUnion& list, const SelectedShared<Shape>& shared) {
  using T = typename Shape::T;
  constexpr int keys_at_once = Shape::keys_at_once;
  const int query = threadIdx.x / 32, lane = threadIdx.x % 32;
  SoftmaxRows state;
  float o[Shape::dv / 8][4] = {};
  std::uint32_t q[Shape::dk / 16][4];
  ptx::barrier_wait(shared.query_ready(), 0);
  if constexpr (Shape::queries_in_registers) load_query_rows<typename Shape::Queries>(q, shared.query(), query * 16);
  const int count = *list.count;
  for (int index = 0; index < count; ++index) {
    const int stage = index % Shape::stages;
    const bool chosen = list.queries[index] >> query & 1;
    ptx::barrier_wait(shared.ready(stage), index / Shape::stages % 2);
    if (chosen) {
      const int visible = start + query + 1 - list.blocks[index] * Shape::keys;
#pragma unroll 1
      for (int first = 0; first < Shape::keys; first += keys_at_once) {
        float s[keys_at_once / 8][4];
        const std::uint32_t keys = shared.key(stage) + first * 128;
        if constexpr (Shape::queries_in_registers)
          multiply_keys<T, typename Shape::Keys>(s, q, keys);
        else
          multiply_keys<T, typename Shape::Queries, typename Shape::Keys>(s, shared.query(), query * 16, keys);
#pragma unroll
        for (int n = 0; n < keys_at_once / 8; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) s[n][i] *= arguments.problem.scale_log2;
        if (visible < first + keys_at_once) {
#pragma unroll
          for (int n = 0; n < keys_at_once / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i)
              if (first + n * 8 + lane % 4 * 2 + i % 2 >= visible) s[n][i] = -INFINITY;
        }
        update_softmax(state, s, o);
        multiply_values<T, typename Shape::Values>(o, s, shared.value(stage) + first * 128);
      }
    }
    __syncwarp();
    if (lane == 0) ptx::barrier_arrive(shared.free(stage));
  }
  state.finish();
  write_rows<Shape>(arguments, o, state);
}

template <class Shape>
__global__ void __launch_bounds__(Shape::threads, 1)
    selected_attention_kernel(SelectedArguments<typename Shape::T> arguments, const __grid_constant__ BlockMaps maps) {
  extern __shared__ unsigned char memory[];
  const AttentionProblem<typename Shape::T>& a = arguments.problem;
  const std::uint32_t start_of_memory = ptx::shared_address(memory);
  const SelectedShared<Shape> shared{(start_of_memory + 1023) / 1024 * 1024};
  unsigned char* const after_tiles = memory + (shared.base - start_of_memory) + Shape::shared_bytes;
  const SelectedUnion list(after_tiles, arguments.words, arguments.capacity);
  BlockLocation* const locations =
      reinterpret_cast<BlockLocation*>(after_tiles + SelectedUnion::bytes(arguments.words, arguments.capacity));
  const QueryTile tile = own_tile(a);
  const Segment& segment = a.segments[tile.segment];
  const int group = arguments.head_begin + blockIdx.y;
  const int position = static_cast<int>(segment.position + tile.row - segment.row);

  if (threadIdx.x == 0) {
    shared.initialise();
    load_queries<Shape>(maps, group, static_cast<int>(tile.row), shared);
  }
  list.template build<Shape::threads>(arguments.selected + (tile.row * a.groups + group) * arguments.select_count,
                                      tile.rows, arguments.select_count,
                                      static_cast<std::int64_t>(a.groups) * arguments.select_count,
                                      min(arguments.words, (position + tile.rows - 1) / Shape::keys / 32 + 1));
  for (int i = threadIdx.x; i < *list.count; i += Shape::threads)
    locations[i] = arguments.table[(segment.block + list.blocks[i]) * a.groups + group];
  __syncthreads();
  if (threadIdx.x >= Shape::consumers) {
    ptx::give_registers<Shape::producer_registers>();
    if (threadIdx.x == Shape::consumers) produce<Shape>(maps, list, locations, group, shared);
  } else {
    ptx::take_registers<Shape::consumer_registers>();
    consume<Shape>(arguments, position, list, shared);
  }
}

struct UnionSize {
  int words;
  int capacity;
};

template <class Shape>
UnionSize union_size(const SelectedAttention& a) {
  const std::int64_t blocks = a.config->blocks_of(cuda_schedule(a.queries).end_position());
  return {SelectedUnion::words(blocks),
          static_cast<int>(std::min<std::int64_t>(blocks, Shape::queries * a.config->select_count))};
}

constexpr std::size_t most_shared_bytes = 227 * 1024;

/// Tiles, room to align them, the union and where its blocks are.
template <class Shape>
std::size_t selected_shared_bytes(const SelectedAttention& a) {
  const UnionSize size = union_size<Shape>(a);
  return Shape::shared_bytes + 1024 + SelectedUnion::bytes(size.words, size.capacity) +
         static_cast<std::size_t>(size.capacity) * sizeof(BlockLocation);
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
    const Config& config = *a.config;
    const CudaSegmentSchedule& schedule = cuda_schedule(a.queries);
    const ListView<QueryTile> tiles = schedule.tiles(Shape::queries);
    if (tiles.count == 0 || a.head_begin == a.head_end) return;
    SelectedArguments<T> arguments{
        attention_problem<T>(a, schedule, tiles), a.table, a.selected, static_cast<int>(a.head_begin),
        static_cast<int>(config.select_count),    0,       0};
    arguments.problem.out = static_cast<T*>(a.out);
    arguments.problem.log_sum_exp = static_cast<float*>(a.log_sum_exp);
    const UnionSize size = union_size<Shape>(a);
    arguments.words = size.words;
    arguments.capacity = size.capacity;
    const std::size_t bytes = selected_shared_bytes<Shape>(a);
    allow_shared_memory(selected_attention_kernel<Shape>, bytes);
    const dim3 grid(static_cast<unsigned>(tiles.count), static_cast<unsigned>(a.head_end - a.head_begin));
    selected_attention_kernel<Shape>
        <<<grid, Shape::threads, bytes, stream>>>(arguments, block_maps<Shape>(a, schedule.rows));
    check_launch("selected_attention_sm90");
  });
}

}  // namespace cpnsa::cuda::sm90
