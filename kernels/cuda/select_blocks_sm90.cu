// Importance and top n for l 32, s 16, m 64 and 16 heads a group: block j's score is 2 (P[4j] + P[4j+1] + P[4j+2]) +
// P[4j-1] + P[4j+3]. A consumer warp's 16 rows are one query, so a tile of 128 summaries becomes the scores of 32
// blocks, one a lane, without leaving registers; the best so far are kept one a lane too.

#include "kernels/cuda/attention_launch_sm90.cuh"
#include "kernels/cuda/summaries.cuh"
#include "kernels/cuda/top_blocks.cuh"

namespace cpnsa::cuda::sm90 {
namespace {

constexpr unsigned all = 0xffffffffu;

template <class Element, int Dk, int Dv>
struct SelectShape {
  using T = Element;
  static constexpr int dk = Dk;
  static constexpr int heads = 16;
  static constexpr int queries = 16;
  static constexpr int keys = 128;
  static constexpr int blocks = keys / 4;  ///< that a tile completes: a lane each
  static constexpr int stages = Dk > 128 ? 2 : 3;
  static constexpr int consumers = queries / 4;
  static constexpr int threads = 128 * (consumers + 1);
  static constexpr int producer_registers = 24;
  static constexpr int consumer_registers = 112;
  static constexpr int query_bytes = queries * heads * Dk * 2;
  static constexpr int query_column_bytes = queries * heads * 128;
  static constexpr int key_bytes = keys * Dk * 2;
  static constexpr int column_bytes = keys * 128;
  static constexpr int shared_bytes = query_bytes + stages * key_bytes + (2 + 2 * stages) * 8;
  static_assert(shared_bytes + 1024 <= 227 * 1024);
};

template <class Shape>
struct SelectShared {
  std::uint32_t base;

  __device__ std::uint32_t query() const { return base; }
  __device__ std::uint32_t key(int stage) const { return base + Shape::query_bytes + stage * Shape::key_bytes; }
  __device__ std::uint32_t query_ready() const { return key(Shape::stages); }
  __device__ std::uint32_t query_free() const { return query_ready() + 8; }
  __device__ std::uint32_t key_ready(int stage) const { return query_ready() + 16 + stage * 8; }
  __device__ std::uint32_t key_free(int stage) const { return key_ready(Shape::stages) + stage * 8; }

  __device__ void initialise() const {
    ptx::barrier_init(query_ready(), 1);
    ptx::barrier_init(query_free(), Shape::consumers);
    for (int stage = 0; stage < Shape::stages; ++stage) {
      ptx::barrier_init(key_ready(stage), 1);
      ptx::barrier_init(key_free(stage), Shape::consumers);
    }
    ptx::fence_barrier_init();
  }
};

/// The best blocks of one query so far, one a lane below `places`. Order is that of TopBlocks: higher scores first, NaN
/// last, ties to the lower block; offers come in ascending order of blocks.
class RegisterTopBlocks {
 public:
  __device__ explicit RegisterTopBlocks(int places)
      : holds_(static_cast<int>(threadIdx.x % 32) < places), worst_(places > 0 ? empty : ~0u) {
    block_ = -1 - static_cast<int>(threadIdx.x % 32);  // distinct, below every block: lane 0's place is taken first
    find_worst();
  }

  /// Each lane's block, ascending with the lane.
  __device__ __forceinline__ void offer(float score, int block, bool valid) {
    // Unsigned numbers in the order of the scores, which are not negative: none, NaN, numbers.
    const unsigned key = isnan(score) ? 1u : __float_as_uint(score) + 2u;
    unsigned waiting = __ballot_sync(all, valid && key > worst_);
    while (waiting != 0) {
      const int source = __ffs(static_cast<int>(waiting)) - 1;
      waiting &= waiting - 1;
      const unsigned offered = __shfl_sync(all, key, source);
      const int offered_block = __shfl_sync(all, block, source);
      if (offered <= worst_) continue;
      if (static_cast<int>(threadIdx.x % 32) == worst_lane_) {
        key_ = offered;
        block_ = offered_block;
      }
      find_worst();
    }
  }

  __device__ __forceinline__ void write(std::int32_t* selected, const SelectionRule& rule, int position) const {
    const int lane = threadIdx.x % 32, causal = rule.causal(position), places = rule.places();
    if (!rule.chooses(position)) {
      for (int i = lane; i < rule.select_count; i += 32) selected[i] = i < causal ? i : -1;
      return;
    }
    int rank = 0;
    for (int other = 0; other < places; ++other) rank += __shfl_sync(all, block_, other) < block_;
    if (holds_) selected[rule.init_blocks + rank] = block_;
    for (int i = lane; i < rule.init_blocks; i += 32) selected[i] = i;
    for (int i = lane; i < rule.local_blocks; i += 32)
      selected[rule.init_blocks + places + i] = causal - rule.local_blocks + i;
  }

 private:
  static constexpr unsigned empty = 0;

  // Of equal keys the highest block gives way.
  __device__ __forceinline__ void find_worst() {
    if (worst_ == ~0u) return;  // no places: nothing is ever better
    worst_ = __reduce_min_sync(all, holds_ ? key_ : ~0u);
    unsigned candidates = __ballot_sync(all, holds_ && key_ == worst_);
    if ((candidates & (candidates - 1)) != 0) {
      const int highest = __reduce_max_sync(all, holds_ && key_ == worst_ ? block_ : INT_MIN);
      candidates = __ballot_sync(all, holds_ && key_ == worst_ && block_ == highest);
    }
    worst_lane_ = __ffs(static_cast<int>(candidates)) - 1;
  }

  bool holds_;
  unsigned key_ = empty;
  int block_;
  unsigned worst_;
  int worst_lane_ = 0;
};

/// Sums 16 values a lane over the eight lanes of equal lane % 4; lane i keeps values 2 (i / 4) and 2 (i / 4) + 1.
__device__ __forceinline__ void sum_over_rows(const float (&v)[16], float (&kept)[2]) {
  const int lane = threadIdx.x % 32;
  float eight[8], four[4];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const bool upper = lane & 16;
    eight[i] = (upper ? v[8 + i] : v[i]) + __shfl_xor_sync(all, upper ? v[i] : v[8 + i], 16);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const bool upper = lane & 8;
    four[i] = (upper ? eight[4 + i] : eight[i]) + __shfl_xor_sync(all, upper ? eight[i] : eight[4 + i], 8);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const bool upper = lane & 4;
    kept[i] = (upper ? four[2 + i] : four[i]) + __shfl_xor_sync(all, upper ? four[i] : four[2 + i], 4);
  }
}

/// Probabilities of a warp's 16 rows and 128 summaries to the scores of 32 blocks, lane i the i-th. `carry`: what the
/// last summary before the tile gives to the first block, and on return what this tile's last gives to the next.
__device__ __forceinline__ float fold(const float (&p)[64], float& carry) {
  const int lane = threadIdx.x % 32, quad = lane & ~3;
  const bool odd = lane & 1, second = lane & 2;
  // Of each 8 summaries a lane has two, 2 (lane % 4) and the next: even lanes the first two of a block, odd lanes the
  // last two, of which the last reaches into the next block.
  float own[16], passed[16];
#pragma unroll
  for (int n = 0; n < 16; ++n) {
    const float left = p[4 * n] + p[4 * n + 2], right = p[4 * n + 1] + p[4 * n + 3];
    own[n] = odd ? fmaf(2.f, left, right) : 2.f * (left + right);
    passed[n] = right;
  }
  float score[2], pass[2];
  sum_over_rows(own, score);
  sum_over_rows(passed, pass);
  const float next_carry = __shfl_sync(all, pass[1], 31);
  const float before = __shfl_sync(all, pass[1], (quad + 31) % 32);  // lane % 4 == 3 of the quad before
  const float from_first[2] = {__shfl_sync(all, pass[0], quad + 1), __shfl_sync(all, pass[1], quad + 1)};
  const float from_last = __shfl_sync(all, pass[0], quad + 3);
  score[0] += __shfl_xor_sync(all, score[0], 1);
  score[1] += __shfl_xor_sync(all, score[1], 1);
  score[0] += second ? from_first[0] : quad == 0 ? carry : before;
  score[1] += second ? from_first[1] : from_last;
  carry = next_carry;
  // Lane q of a quad has blocks 4 (lane / 4) + q / 2 and 2 more; block i is to come to lane i.
  const float mine = odd ? score[1] : score[0];
  return __shfl_sync(all, mine, quad + (lane & 1) * 2 + (lane & 2) / 2);
}

template <class Shape>
struct SelectArguments {
  AttentionProblem<typename Shape::T> problem;
  WorkList work;
  SummaryRule summaries;
  SelectionRule selection;
  std::int32_t* selected;

  /// Key tiles that the tile's last query needs.
  __device__ int tiles(const QueryTile& tile, int position) const {
    const int last = position + tile.rows - 1;
    if (!selection.chooses(last) || selection.places() == 0) return 0;
    return (selection.candidates_end(last) + Shape::blocks - 1) / Shape::blocks;
  }
};

template <class Shape>
__device__ __forceinline__ void produce(const SelectArguments<Shape>& a, const CUtensorMap& queries,
                                        const CUtensorMap& keys, const SelectShared<Shape>& shared) {
  RingPosition<Shape::stages> ring;
  int item_phase = 1;
  for (int item = blockIdx.x; item < a.work.count(); item += gridDim.x) {
    const QueryTile tile = a.problem.tiles[a.work.tile(item)];
    const Segment& segment = a.problem.segments[tile.segment];
    const int group = a.work.group(item), summary = static_cast<int>(segment.summary);
    const int tiles = a.tiles(tile, static_cast<int>(segment.position + tile.row - segment.row));
    if (tiles == 0) continue;
    ptx::barrier_wait(shared.query_free(), item_phase);
    item_phase ^= 1;
    ptx::barrier_arrive_expect(shared.query_ready(), Shape::query_bytes);
    for (int column = 0; column < Shape::dk / 64; ++column)
      ptx::tensor_load(shared.query() + column * Shape::query_column_bytes, &queries, shared.query_ready(), column * 64,
                       group * Shape::heads, static_cast<int>(tile.row));
    for (int index = 0; index < tiles; ++index, ring.advance()) {
      ptx::barrier_wait(shared.key_free(ring.stage), ring.phase ^ 1);
      ptx::barrier_arrive_expect(shared.key_ready(ring.stage), Shape::key_bytes);
      for (int column = 0; column < Shape::dk / 64; ++column)
        ptx::tensor_load(shared.key(ring.stage) + column * Shape::column_bytes, &keys, shared.key_ready(ring.stage),
                         column * 64, group, summary + index * Shape::keys);
    }
  }
}

template <class Shape>
__device__ __forceinline__ void consume(const SelectArguments<Shape>& a, const SelectShared<Shape>& shared) {
  using T = typename Shape::T;
  const int warpgroup = threadIdx.x / 128 - 1, lane = threadIdx.x % 32;
  const int query = warpgroup * 4 + threadIdx.x / 32 % 4;  // in the tile
  const bool speaks = threadIdx.x % 128 == 0;
  const std::uint32_t own_query = shared.query() + warpgroup * 64 * 128;
  RingPosition<Shape::stages> ring;
  int item_phase = 0;
  for (int item = blockIdx.x; item < a.work.count(); item += gridDim.x) {
    const QueryTile tile = a.problem.tiles[a.work.tile(item)];
    const Segment& segment = a.problem.segments[tile.segment];
    const int group = a.work.group(item), start = static_cast<int>(segment.position + tile.row - segment.row);
    const int position = start + query, tiles = a.tiles(tile, start);
    const bool exists = query < tile.rows;
    RegisterTopBlocks top(a.selection.places());
    if (tiles > 0) {
      const bool chooses = exists && a.selection.chooses(position);
      const int visible = a.summaries.visible(position), candidates_end = a.selection.candidates_end(position);
      float base[2] = {0.f, 0.f};
      if (exists) {
        const float* const log_sum_exp =
            a.problem.log_sum_exp + (tile.row + query) * a.problem.heads + group * Shape::heads;
        base[0] = log_sum_exp[lane / 4] * log2_e;
        base[1] = log_sum_exp[lane / 4 + 8] * log2_e;
      }
      float carry = 0.f;
      ptx::barrier_wait(shared.query_ready(), item_phase);
      item_phase ^= 1;
      for (int index = 0; index < tiles; ++index, ring.advance()) {
        float s[Shape::keys / 2];
        ptx::barrier_wait(shared.key_ready(ring.stage), ring.phase);
        ptx::hold(s);
        ptx::wgmma_fence();
#pragma unroll
        for (int step = 0; step < Shape::dk / 16; ++step)
          ptx::wgmma_nt(T{}, s, ptx::operand(own_query + step / 4 * Shape::query_column_bytes + step % 4 * 32),
                        ptx::operand(shared.key(ring.stage) + step / 4 * Shape::column_bytes + step % 4 * 32),
                        step > 0);
        ptx::wgmma_commit();
        ptx::wgmma_wait<0>();
        ptx::hold(s);
        if (speaks) ptx::barrier_arrive(shared.key_free(ring.stage));
        const int first = index * Shape::keys;
        if (!chooses || first / 4 >= candidates_end) continue;
#pragma unroll
        for (int i = 0; i < Shape::keys / 2; ++i)
          s[i] = ptx::exp2_approximate(fmaf(s[i], a.problem.scale_log2, -base[i / 2 % 2]));
        if (first + Shape::keys > visible) {
#pragma unroll
          for (int i = 0; i < Shape::keys / 2; ++i)
            if (first + i / 4 * 8 + lane % 4 * 2 + i % 2 >= visible) s[i] = 0.f;
        }
        const float score = fold(s, carry);
        const int block = index * Shape::blocks + lane;
        top.offer(score, block, block >= a.selection.init_blocks && block < candidates_end);
      }
      if (speaks) ptx::barrier_arrive(shared.query_free());
    }
    if (exists)
      top.write(a.selected + ((tile.row + query) * a.problem.groups + group) * a.selection.select_count, a.selection,
                position);
  }
}

template <class Shape>
__global__ void __launch_bounds__(Shape::threads, 1)
    select_blocks_kernel(SelectArguments<Shape> a, const __grid_constant__ CUtensorMap queries,
                         const __grid_constant__ CUtensorMap keys) {
  extern __shared__ unsigned char memory[];
  const SelectShared<Shape> shared{(ptx::shared_address(memory) + 1023) / 1024 * 1024};
  if (threadIdx.x == 0) shared.initialise();
  __syncthreads();
  if (threadIdx.x < 128) {
    ptx::give_registers<Shape::producer_registers>();
    if (threadIdx.x == 0) produce<Shape>(a, queries, keys, shared);
  } else {
    ptx::take_registers<Shape::consumer_registers>();
    consume<Shape>(a, shared);
  }
}

}  // namespace

void select_blocks(const SelectBlocks& a, cudaStream_t stream) {
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
                                     {static_cast<int>(tiles.count), static_cast<int>(config.num_kv_heads)},
                                     SummaryRule(config),
                                     SelectionRule(config),
                                     a.selected};
    arguments.problem.log_sum_exp = static_cast<float*>(const_cast<void*>(a.log_sum_exp));
    const CUtensorMap queries = make_tensor_map(
        a.q, a.dtype, rows_layout(schedule.rows, config.num_q_heads, Shape::dk, Shape::queries, Shape::heads));
    const CUtensorMap keys =
        make_tensor_map(a.keys, a.dtype, rows_layout(summaries, config.num_kv_heads, Shape::dk, Shape::keys, 1));
    const std::size_t bytes = Shape::shared_bytes + 1024;
    allow_shared_memory(select_blocks_kernel<Shape>, bytes);
    const int blocks = std::min(multiprocessors(), arguments.work.tiles * arguments.work.groups);
    select_blocks_kernel<Shape><<<blocks, Shape::threads, bytes, stream>>>(arguments, queries, keys);
    check_launch("select_blocks_sm90");
  });
}

}  // namespace cpnsa::cuda::sm90
