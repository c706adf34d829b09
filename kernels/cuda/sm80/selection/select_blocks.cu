// Importance (equation 9) and top n, fused: no score leaves the chip. A thread block takes 64 (query, head) rows of one
// KV head and walks the summaries once more: p = exp2(s - log_sum_exp) goes to shared memory, is summed over the
// group's heads in ascending order, folded into the blocks that the tile completes in ascending order of summaries, and
// offered to each query's best so far. A row's scores depend on nothing but its query, its document and its position.
// More than 64 heads are multiplied by a tile of summaries 64 at a time.

#include "kernels/cuda/common/summary_rule.cuh"
#include "kernels/cuda/sm80/attention/attention_launch.cuh"
#include "kernels/cuda/sm80/run_op.hpp"
#include "kernels/cuda/sm80/selection/top_blocks.cuh"

namespace cpnsa::cuda::sm80 {
namespace {

/// How summaries fold into block scores.
struct FoldRule {
  SummaryRule summaries;
  SelectionRule selection;
  int per_block;  ///< m / s: summaries that begin in a block
  int reach;      ///< l / s - 1: summaries before them that reach into it
  int carry;      ///< importances kept from tile to tile

  explicit FoldRule(const Config& config)
      : summaries(config),
        selection(config),
        per_block(static_cast<int>(config.select_block / config.compress_stride)),
        reach(static_cast<int>(config.compress_block / config.compress_stride) - 1),
        carry(per_block + reach - 1) {}

  /// omega(i, j): tokens that summary i and block j share, divided by s; whole, for s divides l and m.
  __device__ float weight(int summary, int block) const {
    return static_cast<float>(min(summary + reach + 1, (block + 1) * per_block) - max(summary, block * per_block));
  }
};

/// Shared memory after the query tile and the ring of key tiles.
template <class Shape>
struct SelectShared {
  static constexpr int pitch = Shape::keys + 1;
  float* probabilities;    ///< [rows][pitch]
  float* importance;       ///< [queries][carry + keys]
  float* scores;           ///< [queries][num_scored]
  std::int32_t* blocks;    ///< [queries][num_scored]
  TopBlocks::Mark* marks;  ///< [queries]

  static std::size_t bytes(int queries, const FoldRule& rule) {
    return sizeof(float) * (Shape::rows * pitch + queries * (rule.carry + Shape::keys)) +
           queries * (TopBlocks::bytes(rule.selection.num_scored()) + sizeof(TopBlocks::Mark));
  }
  __device__ SelectShared(unsigned char* at, int queries, const FoldRule& rule) {
    probabilities = reinterpret_cast<float*>(at);
    importance = probabilities + Shape::rows * pitch;
    scores = importance + queries * (rule.carry + Shape::keys);
    blocks = reinterpret_cast<std::int32_t*>(scores + queries * rule.selection.num_scored());
    marks = reinterpret_cast<TopBlocks::Mark*>(blocks + queries * rule.selection.num_scored());
  }
};

template <class Shape>
struct SelectKernel {
  using T = typename Shape::T;
  using Queries = typename Shape::Queries;
  using Keys = typename Shape::Keys;
  static constexpr int shared_bytes = Queries::bytes + Shape::stages * Keys::bytes;

  // p of this tile's summaries, 0 where a row sees none, to shared memory.
  __device__ __forceinline__ static void write_probabilities(const AttentionProblem<T>& a, const FoldRule& rule,
                                                             const TileRow (&rows)[2], int position, int first,
                                                             std::uint32_t queries, std::uint32_t keys,
                                                             float* probabilities) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float s[Shape::keys / 8][4];
    multiply_keys<T, Queries, Keys>(s, queries, warp * 16, keys);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const bool exists = rows[half].head_row >= 0;
      const int visible = exists ? rule.summaries.visible(position + rows[half].query) - first : 0;
      const float base = exists ? a.log_sum_exp[rows[half].head_row] * log2_e : 0.f;
      float* const row = probabilities + (warp * 16 + lane / 4 + 8 * half) * SelectShared<Shape>::pitch;
#pragma unroll
      for (int n = 0; n < Shape::keys / 8; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int key = n * 8 + lane % 4 * 2 + i;
          row[key] = key < visible ? ptx::exp2_approximate(s[n][2 * half + i] * a.scale_log2 - base) : 0.f;
        }
    }
  }

  // P = sum over the heads, ascending; `continues` the sums of the slice before.
  __device__ __forceinline__ static void sum_heads(int heads, bool continues, int queries, const float* probabilities,
                                                   float* importance, int carry) {
    for (int index = threadIdx.x; index < queries * Shape::keys; index += Shape::threads) {
      const int query = index / Shape::keys, key = index % Shape::keys;
      float& importance_of_key = importance[query * (carry + Shape::keys) + carry + key];
      float sum = continues ? importance_of_key : 0.f;
      for (int head = 0; head < heads; ++head)
        sum += probabilities[(query * heads + head) * SelectShared<Shape>::pitch + key];
      importance_of_key = sum;
    }
  }

  // Scores of the blocks whose last summary is in [first, first + keys), offered; then the importances that later
  // blocks need move to the front.
  __device__ __forceinline__ static void fold(const FoldRule& rule, const SelectShared<Shape>& shared, int query,
                                              int position, int first) {
    const int lane = threadIdx.x % 32, num_scored = rule.selection.num_scored();
    float* const importance = shared.importance + query * (rule.carry + Shape::keys);
    TopBlocks top(shared.scores + query * num_scored, shared.blocks + query * num_scored, num_scored);
    top.resume(shared.marks[query]);
    const int begin = first / rule.per_block, end = (first + Shape::keys) / rule.per_block;
    const int candidates_end = rule.selection.candidates_end(position);
    for (int base = begin; base < end; base += 32) {
      const int block = base + lane;
      const bool valid = block < end && block >= rule.selection.init_blocks && block < candidates_end;
      float score = 0.f;
      if (valid)
        for (int i = max(0, block * rule.per_block - rule.reach); i < (block + 1) * rule.per_block; ++i)
          score += rule.weight(i, block) * importance[rule.carry + i - first];
      top.offer(isnan(score) ? -1.f : score, block, valid);
    }
    __syncwarp();
    if (lane == 0) shared.marks[query] = top.mark();
    for (int base = 0; base < rule.carry; base += 32) {
      const int i = base + lane;
      const float moved = i < rule.carry ? importance[Shape::keys + i] : 0.f;
      __syncwarp();
      if (i < rule.carry) importance[i] = moved;
      __syncwarp();
    }
  }
};

template <class Shape>
__global__ void __launch_bounds__(Shape::threads, 2)
    select_blocks_kernel(AttentionProblem<typename Shape::T> a, const typename Shape::T* all_keys, FoldRule rule,
                         std::int32_t* selected) {
  using T = typename Shape::T;
  using Kernel = SelectKernel<Shape>;
  using Keys = typename Shape::Keys;
  extern __shared__ __align__(1024) unsigned char memory[];
  const QueryTile tile = a.tiles[gridDim.x - 1 - blockIdx.x];
  const Segment& segment = a.segments[tile.segment];
  const int group = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int position = static_cast<int>(segment.position + tile.row - segment.row), last = position + tile.rows - 1;
  const std::uint32_t queries = ptx::shared_address(memory), ring = queries + Shape::Queries::bytes;
  const SelectShared<Shape> shared(memory + Kernel::shared_bytes, tile.rows, rule);
  const int slices = num_head_slices(a.heads_per_group);

  const int seen = rule.summaries.visible(last);
  const int needed = rule.selection.chooses(last) && rule.selection.num_scored() > 0
                         ? rule.selection.candidates_end(last) * rule.per_block
                         : 0;
  const int tiles = (needed + Shape::keys - 1) / Shape::keys;
  const T* const keys = all_keys + (segment.summary * a.num_kv_heads + group) * a.d_qk;
  const auto load_keys = [&](int index) {
    load_rows<Keys, Shape::threads>(ring + index % Shape::stages * Keys::bytes, a.d_qk, a.q, [&](int r) -> const T* {
      const int summary = index * Shape::keys + r;
      return summary < seen ? keys + static_cast<std::int64_t>(summary) * a.num_kv_heads * a.d_qk : nullptr;
    });
    ptx::cp_async_commit();
  };

  for (int i = threadIdx.x; i < tile.rows * (rule.carry + Shape::keys); i += Shape::threads) shared.importance[i] = 0.f;
  for (int i = threadIdx.x; i < tile.rows; i += Shape::threads) shared.marks[i] = {};
  if (tiles > 0) {
    if (slices == 1) load_queries<Shape>(a, tile, HeadSlice(a, group), queries);
    load_keys(0);
  }
  for (int index = 0; index < tiles; ++index) {
    if (index + 1 < tiles) {
      load_keys(index + 1);
      ptx::cp_async_wait<1>();
    } else {
      ptx::cp_async_wait<0>();
    }
    __syncthreads();
    const int first = index * Shape::keys;
    for (int i = 0; i < slices; ++i) {
      const HeadSlice slice(a, group * slices + i);
      if (slices > 1) {
        load_queries<Shape>(a, tile, slice, queries);
        ptx::cp_async_commit();
        ptx::cp_async_wait<0>();
        __syncthreads();
      }
      const TileRow rows[2] = {{a, tile, slice, warp * 16 + lane / 4}, {a, tile, slice, warp * 16 + lane / 4 + 8}};
      Kernel::write_probabilities(a, rule, rows, position, first, queries, ring + index % Shape::stages * Keys::bytes,
                                  shared.probabilities);
      __syncthreads();
      Kernel::sum_heads(slice.heads, i > 0, tile.rows, shared.probabilities, shared.importance, rule.carry);
      __syncthreads();
    }
    for (int query = warp; query < tile.rows; query += Shape::warps)
      Kernel::fold(rule, shared, query, position + query, first);
    __syncthreads();
  }
  __syncthreads();
  const int num_scored = rule.selection.num_scored();
  for (int query = warp; query < tile.rows; query += Shape::warps) {
    TopBlocks top(shared.scores + query * num_scored, shared.blocks + query * num_scored, num_scored);
    top.write(selected + ((tile.row + query) * a.num_kv_heads + group) * rule.selection.select_count, rule.selection,
              position + query);
  }
}

}  // namespace

template <>
void run_op(const SelectBlocks& a, cudaStream_t stream) {
  visit_shape<AttentionShape>(a, [&]<class Shape>(std::type_identity<Shape>) {
    using T = typename Shape::T;
    const Config& config = *a.config;
    const CudaSegmentSchedule& schedule = cuda_schedule(a.queries);
    const int queries = queries_per_tile(config);
    const ListView<QueryTile> tiles = schedule.tiles(queries);
    if (tiles.count == 0) return;
    AttentionProblem<T> problem = attention_problem<T>(a, schedule, tiles);
    problem.log_sum_exp = static_cast<float*>(const_cast<void*>(a.log_sum_exp));
    const FoldRule rule(config);
    const std::size_t bytes = SelectKernel<Shape>::shared_bytes + SelectShared<Shape>::bytes(queries, rule);
    allow_shared_memory(select_blocks_kernel<Shape>, bytes);
    const dim3 grid(static_cast<unsigned>(tiles.count), static_cast<unsigned>(config.num_kv_heads));
    select_blocks_kernel<Shape>
        <<<grid, Shape::threads, bytes, stream>>>(problem, static_cast<const T*>(a.keys), rule, a.selected);
    check_launch("select_blocks");
  });
}

}  // namespace cpnsa::cuda::sm80
