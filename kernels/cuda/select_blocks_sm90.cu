// Importance and top n for l 32, s 16, m 64 and 16 heads a group: block j's score is 2 (P[4j] + P[4j+1] + P[4j+2]) +
// P[4j-1] + P[4j+3]. A consumer warp's 16 rows are one query, so half a tile, 64 summaries, becomes the scores of 16
// blocks, one every other lane, without leaving registers; the best so far are kept one a lane too. One half's scores
// are all that a warp holds, so that six warpgroups fit and hide each other's latencies.

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
  static constexpr int queries = Dk > 128 ? 16 : 24;
  static constexpr int keys = 128;
  static constexpr int blocks = keys / 4;  ///< that a tile completes
  static constexpr int stages = Dk > 128 ? 2 : 3;
  static constexpr int consumers = queries / 4;
  static constexpr int threads = 128 * (consumers + 1);
  static constexpr int producer_registers = 24;
  static constexpr int consumer_registers = Dk > 128 ? 112 : 80;
  static constexpr int query_bytes = queries * heads * Dk * 2;
  static constexpr int query_column_bytes = queries * heads * 128;
  static constexpr int key_bytes = keys * Dk * 2;
  static constexpr int column_bytes = keys * 128;
  static constexpr int shared_bytes = query_bytes + stages * key_bytes + (2 + 2 * stages) * 8;
  static_assert(shared_bytes + 1024 <= 227 * 1024);
  static_assert(registers_suffice(threads, 128 * consumers, producer_registers, consumer_registers));
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

/// The best blocks of one query so far, one a lane, best first; lanes from `places` on hold runners-up. Order is that
/// of TopBlocks: higher scores first, NaN last, ties to the lower block; offers come in ascending order of blocks.
class RegisterTopBlocks {
 public:
  __device__ explicit RegisterTopBlocks(int places) : last_(places - 1), worst_(places > 0 ? 0u : ~0u) {}

  /// Even lanes offer block first + lane / 2 each, ascending with the lane.
  __device__ __forceinline__ void offer(float score, int first, bool valid) {
    // Unsigned numbers in the order of the scores, which are not negative: empty places 0, NaN 1, numbers.
    const unsigned key = isnan(score) ? 1 : __float_as_uint(score) + 2;
    unsigned waiting = __ballot_sync(all, valid && key > worst_);
    if (waiting == 0) return;
    do {
      const int source = __ffs(static_cast<int>(waiting)) - 1;
      waiting &= waiting - 1;
      insert(__shfl_sync(all, key, source), first + source / 2);
    } while (waiting != 0);
    worst_ = __shfl_sync(all, key_, last_);
  }

  __device__ __forceinline__ void write(std::int32_t* selected, const SelectionRule& rule, int position) const {
    const int lane = threadIdx.x % 32, causal = rule.causal(position), places = rule.places();
    if (!rule.chooses(position)) {
      for (int i = lane; i < rule.select_count; i += 32) selected[i] = i < causal ? i : -1;
      return;
    }
    int rank = 0;
    for (int other = 0; other < places; ++other) rank += __shfl_sync(all, block_, other) < block_;
    if (lane < places) selected[rule.init_blocks + rank] = block_;
    for (int i = lane; i < rule.init_blocks; i += 32) selected[i] = i;
    for (int i = lane; i < rule.local_blocks; i += 32)
      selected[rule.init_blocks + places + i] = causal - rule.local_blocks + i;
  }

 private:
  // Behind all that are as good: those have the lower blocks. Whatever comes after moves a lane up.
  __device__ __forceinline__ void insert(unsigned key, int block) {
    const unsigned before = __shfl_up_sync(all, key_, 1);
    const int block_before = __shfl_up_sync(all, block_, 1);
    const bool moves = key_ < key, is_first = threadIdx.x % 32 == 0 || before >= key;
    if (!moves) return;
    key_ = is_first ? key : before;
    block_ = is_first ? block : block_before;
  }

  int last_;
  unsigned key_ = 0;
  int block_ = -1;
  unsigned worst_;  ///< of the last place
};

/// Sums 8 values a lane over the eight lanes of equal lane % 4; lane i gets value i / 4.
__device__ __forceinline__ float sum_over_rows(const float (&v)[8]) {
  const int lane = threadIdx.x % 32;
  float four[4], two[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const bool upper = lane & 16;
    four[i] = (upper ? v[4 + i] : v[i]) + __shfl_xor_sync(all, upper ? v[i] : v[4 + i], 16);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const bool upper = lane & 8;
    two[i] = (upper ? four[2 + i] : four[i]) + __shfl_xor_sync(all, upper ? four[i] : four[2 + i], 8);
  }
  const bool upper = lane & 4;
  return (upper ? two[1] : two[0]) + __shfl_xor_sync(all, upper ? two[0] : two[1], 4);
}

/// Twice the probabilities of a warp's 16 rows and 64 summaries to the scores of 16 blocks: the even lanes' sums are
/// the blocks' of the lane, half its number. `carry`: what the last summary before them gives to the first block, and
/// on return what their last gives to the next.
__device__ __forceinline__ float fold(const float (&p)[32], float& carry) {
  // Of each 8 summaries a lane has two, 2 (lane % 4) and the next: even lanes the first two of a block, which count
  // twice, odd lanes the last two, of which the last counts once and reaches into the next block once.
  const int lane = threadIdx.x % 32;
  const bool odd = lane & 1;
  const float last_weight = odd ? 0.5f : 1.f;
  float v[8];
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const float left = p[4 * n] + p[4 * n + 2], right = last_weight * (p[4 * n + 1] + p[4 * n + 3]);
    const float own = left + right, other = __shfl_xor_sync(all, own, 1);
    v[n] = odd ? right : own + other;  // even: the block's own; odd: what it gives to the next
  }
  const float sum = sum_over_rows(v);
  const float before = __shfl_up_sync(all, sum, 1);
  const float score = sum + (lane == 0 ? carry : before);
  carry = __shfl_sync(all, sum, 31);
  return score;
}

template <class Shape>
struct SelectArguments {
  AttentionProblem<typename Shape::T> problem;
  WorkList work;  ///< dealt out, not by ticket: the consumers leave the producer no registers for that
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
    const QueryTile tile = a.problem.tiles[tile_of(a.work, item)];
    const Segment& segment = a.problem.segments[tile.segment];
    const int group = item % a.work.groups, summary = static_cast<int>(segment.summary);
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

/// One query's scores, half a tile after another.
template <class Shape>
struct QueryScores {
  RegisterTopBlocks top;
  bool chooses;
  int visible;         ///< summaries
  int candidates_end;  ///< blocks
  float base[2];       ///< log2-sum-exp of the lane's two rows less 1: exp2 gives twice the probability
  float carry = 0.f;

  __device__ QueryScores(const SelectArguments<Shape>& a, const QueryTile& tile, int group, int query, int position)
      : top(a.selection.places()),
        chooses(query < tile.rows && a.selection.chooses(position)),
        visible(a.summaries.visible(position)),
        candidates_end(a.selection.candidates_end(position)),
        base{0.f, 0.f} {
    if (!chooses) return;
    const float* const log_sum_exp =
        a.problem.log_sum_exp + (tile.row + query) * a.problem.heads + group * Shape::heads;
    base[0] = log_sum_exp[threadIdx.x % 32 / 4] * log2_e - 1.f;
    base[1] = log_sum_exp[threadIdx.x % 32 / 4 + 8] * log2_e - 1.f;
  }

  /// Products of the summaries [first, first + 64).
  __device__ __forceinline__ void take(float (&s)[32], int first, const SelectArguments<Shape>& a) {
    const int lane = threadIdx.x % 32;
    if (!chooses || first / 4 >= candidates_end) return;
#pragma unroll
    for (int i = 0; i < 32; ++i) s[i] = ptx::exp2_approximate(fmaf(s[i], a.problem.scale_log2, -base[i / 2 % 2]));
    if (first + 64 > visible) {
#pragma unroll
      for (int i = 0; i < 32; ++i)
        if (first + i / 4 * 8 + lane % 4 * 2 + i % 2 >= visible) s[i] = 0.f;
    }
    const float score = fold(s, carry);
    const int block = first / 4 + lane / 2;
    top.offer(score, first / 4, lane % 2 == 0 && block >= a.selection.init_blocks && block < candidates_end);
  }
};

/// Products of a warpgroup's 64 rows with 64 summaries, enqueued.
template <class Shape>
__device__ __forceinline__ void enqueue_half(float (&s)[32], std::uint64_t query, std::uint64_t keys) {
  ptx::hold(s);
  ptx::wgmma_fence();
#pragma unroll
  for (int step = 0; step < Shape::dk / 16; ++step)
    ptx::wgmma_nt(typename Shape::T{}, s, ptx::advance(query, step / 4 * Shape::query_column_bytes + step % 4 * 32),
                  ptx::advance(keys, step / 4 * Shape::column_bytes + step % 4 * 32), step > 0);
  ptx::wgmma_commit();
}

template <class Shape>
__device__ __forceinline__ void consume(const SelectArguments<Shape>& a, const SelectShared<Shape>& shared) {
  const int warpgroup = threadIdx.x / 128 - 1;
  const int query = warpgroup * 4 + threadIdx.x / 32 % 4;  // in the tile
  const bool speaks = threadIdx.x % 128 == 0;
  const std::uint64_t own_query = ptx::operand(ptx::uniform(shared.query() + warpgroup * 64 * 128));
  RingPosition<Shape::stages> ring;
  int item_phase = 0;
  for (int item = blockIdx.x; item < a.work.count(); item += gridDim.x) {
    const QueryTile tile = a.problem.tiles[tile_of(a.work, item)];
    const Segment& segment = a.problem.segments[tile.segment];
    const int group = item % a.work.groups, start = static_cast<int>(segment.position + tile.row - segment.row);
    const int tiles = a.tiles(tile, start);
    QueryScores<Shape> scores(a, tile, group, query, start + query);
    if (tiles > 0) {
      ptx::barrier_wait(shared.query_ready(), item_phase);
      item_phase ^= 1;
      for (int index = 0; index < tiles; ++index, ring.advance()) {
        ptx::barrier_wait(shared.key_ready(ring.stage), ring.phase);
        const std::uint64_t keys = ptx::operand(ptx::uniform(shared.key(ring.stage)));
#pragma unroll 1
        for (int half = 0; half < 2; ++half) {
          float s[32];
          enqueue_half<Shape>(s, own_query, ptx::advance(keys, half * (64 * 128)));
          ptx::wgmma_wait<0>();
          ptx::hold(s);
          if (half == 1 && speaks) ptx::barrier_arrive(shared.key_free(ring.stage));
          scores.take(s, index * Shape::keys + half * 64, a);
        }
      }
      if (speaks) ptx::barrier_arrive(shared.query_free());
    }
    if (query < tile.rows)
      scores.top.write(a.selected + ((tile.row + query) * a.problem.groups + group) * a.selection.select_count,
                       a.selection, start + query);
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
                                     {static_cast<int>(tiles.count), static_cast<int>(config.num_kv_heads), nullptr},
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
