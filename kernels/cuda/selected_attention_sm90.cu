// Selected attention: neighbouring queries of one KV head walk the union of their blocks once, a warp a query and a
// warpgroup four. Keys and values of each block come into a ring in shared memory through the copy engine; a warpgroup
// none of whose queries chose the block passes it by, and in one that takes it the rows of the other queries are zeros.
// What a query reads is shared by those of its neighbours that chose the same blocks.

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
  static constexpr int producer_registers = 24;
  static constexpr int consumer_registers = 160;
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
__device__ __forceinline__ void produce(const BlockMaps& maps, const SelectedUnion& list,
                                        const BlockLocation* locations, int group, int row,
                                        const SelectedShared<Shape>& shared) {
  ptx::barrier_arrive_expect(shared.query_ready(), Shape::query_bytes);
  for (int column = 0; column < Shape::dk / 64; ++column)
    ptx::tensor_load(shared.query() + column * Shape::query_column_bytes, &maps.queries, shared.query_ready(),
                     column * 64, group * Shape::heads, row);
  RingPosition<Shape::stages> ring;
  const int count = *list.count;
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
                                           const float (&o)[Shape::dv / 2], const SoftmaxRows& state) {
  const auto& a = arguments.problem;
  const QueryTile tile = own_tile(a);
  const int query = threadIdx.x / 32, lane = threadIdx.x % 32, group = arguments.head_begin + blockIdx.y;
  if (query >= tile.rows) return;
  const std::int64_t head_row = (tile.row + query) * a.heads + group * Shape::heads;
  write_output(o, state, a.out + head_row * Shape::dv, Shape::dv);
  if (lane % 4 == 0) {
    a.log_sum_exp[head_row + lane / 4] = state.log_sum_exp(0);
    a.log_sum_exp[head_row + lane / 4 + 8] = state.log_sum_exp(1);
  }
}

/// A consumer warp's walk. A block's scores are enqueued beside the output of the one before where the warpgroup takes
/// both, one after the other; else the output is finished first, for the ring may not turn until its block is free.
template <class Shape>
class Consumer {
 public:
  using T = typename Shape::T;

  __device__ Consumer(const SelectedArguments<T>& arguments, int start, const SelectedUnion& list,
                      const SelectedShared<Shape>& shared)
      : scale_log2_(arguments.problem.scale_log2),
        query_(threadIdx.x / 32),
        position_(start + query_),
        count_(*list.count),
        list_(list),
        shared_(shared) {}

  __device__ __forceinline__ void walk(float (&o)[Shape::dv / 2], SoftmaxRows& state) {
    float s[Shape::keys / 2];
    std::uint32_t p[Shape::keys / 16][4];
    float rescale[2];
    ptx::barrier_wait(shared_.query_ready(), 0);
    int index = pass_to_taken(0);
    if (index == count_) return;
    enqueue_scores(s, index);
    ptx::wgmma_wait<0>();
    ptx::hold(s);
    soften(s, index, state, rescale);
    to_operand<T>(p, s);
    while (true) {
      if (index + 1 < count_ && takes(index + 1)) {
        wait(index + 1);
        enqueue_scores(s, index + 1);
        enqueue_output(o, p, index);
        ptx::wgmma_wait<1>();
        ptx::hold(s);
        soften(s, index + 1, state, rescale);
        ptx::wgmma_wait<0>();
        ptx::hold(o);
        release(index);
        ++index;
        apply(o, rescale);
        to_operand<T>(p, s);
      } else {
        enqueue_output(o, p, index);
        ptx::wgmma_wait<0>();
        ptx::hold(o);
        release(index);
        index = pass_to_taken(index + 1);
        if (index == count_) return;
        enqueue_scores(s, index);
        ptx::wgmma_wait<0>();
        ptx::hold(s);
        soften(s, index, state, rescale);
        apply(o, rescale);
        to_operand<T>(p, s);
      }
    }
  }

 private:
  __device__ unsigned chosen(int index) const { return static_cast<unsigned>(list_.queries[index]); }
  __device__ bool takes(int index) const { return (chosen(index) >> query_ / 4 * 4 & 15) != 0; }
  __device__ void wait(int index) const {
    ptx::barrier_wait(shared_.ready(index % Shape::stages), index / Shape::stages % 2);
  }
  __device__ void release(int index) const {
    if (threadIdx.x % 32 == 0) ptx::barrier_arrive(shared_.free(index % Shape::stages));
  }
  /// The next block that the warpgroup takes, once it has come. Those before it are waited for and let go in their
  /// turn: a phase may not be skipped.
  __device__ int pass_to_taken(int index) const {
    for (; index < count_; ++index) {
      wait(index);
      if (takes(index)) break;
      release(index);
    }
    return index;
  }

  __device__ __forceinline__ void enqueue_scores(float (&s)[Shape::keys / 2], int index) const {
    const std::uint32_t query = shared_.query() + query_ / 4 * (64 * 128);  // 64 rows of the warpgroup
    const std::uint32_t key = shared_.key(index % Shape::stages);
    ptx::hold(s);
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < Shape::dk / 16; ++step)
      ptx::wgmma_nt(T{}, s, ptx::operand(query + step / 4 * Shape::query_column_bytes + step % 4 * 32),
                    ptx::operand(key + step / 4 * Shape::column_bytes + step % 4 * 32), step > 0);
    ptx::wgmma_commit();
  }

  __device__ __forceinline__ void enqueue_output(float (&o)[Shape::dv / 2],
                                                 const std::uint32_t (&p)[Shape::keys / 16][4], int index) const {
    const std::uint32_t value = shared_.value(index % Shape::stages);
    ptx::hold(o);
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < Shape::keys / 16; ++step)
      ptx::wgmma_rn(T{}, o, p[step], ptx::operand(value + step * 2048, Shape::column_bytes));
    ptx::wgmma_commit();
  }

  /// Probabilities of the warp's query; zeros, and nothing to rescale, where it did not choose the block.
  __device__ __forceinline__ void soften(float (&s)[Shape::keys / 2], int index, SoftmaxRows& state,
                                         float (&rescale)[2]) const {
    if (chosen(index) >> query_ & 1) {
      const int visible = position_ + 1 - list_.blocks[index] * Shape::keys;
      if (visible < Shape::keys) mask_scores(s, {0, visible}, 0);
      advance_softmax(state, s, scale_log2_, rescale);
    } else {
      rescale[0] = rescale[1] = 1.f;
#pragma unroll
      for (float& value : s) value = 0.f;
    }
  }

  /// Most blocks raise no maximum; multiplying by 1 would change nothing.
  __device__ __forceinline__ static void apply(float (&o)[Shape::dv / 2], const float (&rescale)[2]) {
    if (!__any_sync(0xffffffffu, rescale[0] != 1.f || rescale[1] != 1.f)) return;
#pragma unroll
    for (int i = 0; i < Shape::dv / 2; ++i) o[i] *= rescale[i / 2 % 2];
  }

  float scale_log2_;
  int query_;  ///< in the tile
  int position_;
  int count_;
  const SelectedUnion& list_;
  const SelectedShared<Shape>& shared_;
};

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

  if (threadIdx.x == 0) shared.initialise();
  list.template build<Shape::threads>(arguments.selected + (tile.row * a.groups + group) * arguments.select_count,
                                      tile.rows, arguments.select_count,
                                      static_cast<std::int64_t>(a.groups) * arguments.select_count,
                                      min(arguments.words, (position + tile.rows - 1) / Shape::keys / 32 + 1));
  for (int i = threadIdx.x; i < *list.count; i += Shape::threads)
    locations[i] = arguments.table[(segment.block + list.blocks[i]) * a.groups + group];
  __syncthreads();
  if (threadIdx.x >= Shape::consumers) {
    ptx::give_registers<Shape::producer_registers>();
    if (threadIdx.x == Shape::consumers)
      produce<Shape>(maps, list, locations, group, static_cast<int>(own_tile(a).row), shared);
  } else {
    ptx::take_registers<Shape::consumer_registers>();
    SoftmaxRows state;
    float o[Shape::dv / 2] = {};
    Consumer<Shape>(arguments, position, list, shared).walk(o, state);
    state.finish();
    write_rows<Shape>(arguments, o, state);
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
