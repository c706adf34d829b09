// DecodeCompressedAttention: a work item is a tile of rows of one KV head and a chunk of the sequence's summaries. The
// last thread block that arrives merges the chunks of a tile, ascending. Scores are stored for the selection.

#include "kernels/cuda/decode/run_op.hpp"
#include "kernels/cuda/decode/scratch.hpp"
#include "kernels/cuda/decode/split_launch.cuh"

namespace cpnsa::cuda::decode {
namespace {

template <class T>
struct Problem {
  const T* q;
  KeyPools<T> pools;
  SummaryPages pages;
  WorkRule rule;
  StepSchedule schedule;
  PartialRows chunks;
  float* scores;  ///< [tokens, H, score_stride]; null: not stored
  std::int64_t score_stride;
  float* out;
  float* log_sum_exp;
  float scale_log2;
  int num_q_heads;
  int num_kv_heads;
};

/// Stores the scores of the thread's rows.
struct StoredScores {
  float* rows[2];  ///< null: not stored

  __device__ __forceinline__ void write(int half, int key, float s0, float s1) const {
    if (rows[half]) *reinterpret_cast<float2*>(rows[half] + key) = {s0, s1};
  }
};

/// A tile and a KV head. It is read once more after the sum over keys, so that it takes no registers meanwhile.
struct TileOfHead {
  Tile tile;
  Sequence sequence;
  int group;

  template <class T>
  __device__ __forceinline__ TileOfHead(const Problem<T>& a, int index, int head)
      : tile(a.schedule.tiles[index]), sequence(a.schedule.sequences[tile.sequence]), group(head) {}

  /// Position of the query that row `index` belongs to.
  template <class T>
  __device__ __forceinline__ int position(const Problem<T>& a, int index) const {
    return sequence.position + (tile.first + index) / a.rule.heads_per_group;
  }
  /// The last row sees the summaries below it.
  template <class T>
  __device__ __forceinline__ int end(const Problem<T>& a) const {
    return a.rule.summaries_end(position(a, tile.rows - 1));
  }
  /// row * H + head of row `index`; -1: none.
  template <class T>
  __device__ __forceinline__ std::int64_t pair(const Problem<T>& a, int index) const {
    if (index >= tile.rows) return -1;
    const int query = (tile.first + index) / a.rule.heads_per_group,
              head = (tile.first + index) % a.rule.heads_per_group;
    return static_cast<std::int64_t>(sequence.row + query) * a.num_q_heads + group * a.rule.heads_per_group + head;
  }
};

template <class Shape>
class Kernel {
 public:
  using T = typename Shape::T;
  using Attention = SplitAttention<Shape>;
  using State = typename Attention::State;

  __device__ Kernel(const Problem<T>& problem, unsigned char* shared)
      : a_(problem), attention_(shared, problem.scale_log2) {}

  __device__ void run(const WorkItem& item, int group) {
    const TileOfHead own(a_, item.owner, group);
    const int end = own.end(a_), chunks = a_.rule.chunks(end);
    const bool alone = !a_.chunks.split || chunks == 1;
    for (int first = 0; first < own.tile.rows; first += Shape::rows) {
      attention_.load_queries(a_.pools.d_qk, a_.q, [&](int r) -> const T* {
        const std::int64_t pair = own.pair(a_, first + r);
        return pair < 0 ? nullptr : a_.q + pair * a_.pools.d_qk;
      });
      if (alone) {
        State total;
        for (int chunk = 0; chunk < chunks; ++chunk) {
          attend(own, first, end, chunk);
          attention_.add_to(total);
        }
        finish(TileOfHead(a_, ptx::opaque(item.owner), group), first, total);
      } else {
        attend(own, first, end, item.chunk);
        store(TileOfHead(a_, ptx::opaque(item.owner), group), first, item.chunk);
      }
    }
    if (alone || !arrive_last(a_.schedule.tile_counters + item.owner * a_.num_kv_heads + group, chunks)) return;
    for (int first = 0; first < own.tile.rows; first += Shape::rows) {
      State total;
      const float* out[2];
      const float2* states[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::int64_t pair = own.pair(a_, first + Attention::row(half)), part = pair * a_.chunks.parts;
        out[half] = pair < 0 ? nullptr : a_.chunks.out + part * a_.pools.d_v;
        states[half] = pair < 0 ? nullptr : a_.chunks.state + part;
      }
      Attention::add_stored(total, a_.pools.d_v, out, states, chunks);
      finish(own, first, total);
    }
  }

 private:
  __device__ __forceinline__ void attend(const TileOfHead& own, int first, int end, int chunk) {
    const int length = a_.rule.chunk_summaries(end), unused = a_.pages.own_before(a_.rule.trailing);
    int limits[2];
    StoredScores scores{};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int index = first + Attention::row(half);
      const std::int64_t pair = own.pair(a_, index);
      limits[half] = pair < 0 ? 0 : a_.pages.own_before(a_.rule.summaries_end(own.position(a_, index)));
      if (a_.scores && pair >= 0) scores.rows[half] = a_.scores + pair * a_.score_stride;
    }
    attention_.attend(
        of_head(a_.pools, own.group), chunk * length, min((chunk + 1) * length, a_.pages.own_before(end)),
        [&](int y) {
          return y < unused ? PageRow{-1, 0} : a_.pages.find_own(own.sequence.slot, y);
        },
        limits, scores);
  }

  __device__ __forceinline__ void store(const TileOfHead& own, int first, int chunk) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int64_t pair = own.pair(a_, first + Attention::row(half)), part = pair * a_.chunks.parts + chunk;
      if (pair >= 0) attention_.store(half, a_.pools.d_v, a_.chunks.out + part * a_.pools.d_v, a_.chunks.state + part);
    }
  }

  __device__ __forceinline__ void finish(const TileOfHead& own, int first, const State& total) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int64_t pair = own.pair(a_, first + Attention::row(half));
      if (pair < 0) continue;
      const float factor = total.inverse_sum(half);
      float* const out = a_.out + pair * a_.pools.d_v;
#pragma unroll
      for (int n = 0; n < Shape::value_columns; ++n)
        if (Attention::channel(n) < a_.pools.d_v)
          *reinterpret_cast<float2*>(out + Attention::channel(n)) = {total.o[n][2 * half] * factor,
                                                                     total.o[n][2 * half + 1] * factor};
      if (Attention::warp() == 0 && Attention::lane() % 4 == 0) a_.log_sum_exp[pair] = total.log_sum_exp(half);
    }
  }

  const Problem<T>& a_;
  Attention attention_;
};

template <class Shape>
__global__ void __launch_bounds__(Shape::threads, resident_blocks<Shape>())
    compressed_attention_kernel(const __grid_constant__ Problem<typename Shape::T> a) {
  extern __shared__ __align__(1024) unsigned char shared[];
  ptx::wait_for_previous_grid();
  ptx::allow_next_grid();
  Kernel<Shape> kernel(a, shared);
  const Counts counts = *a.schedule.counts;
  const int items = (a.chunks.split ? counts.chunk_items : counts.tiles) * a.num_kv_heads;
  for (int item = static_cast<int>(blockIdx.x); item < items; item += static_cast<int>(gridDim.x)) {
    const int index = item / a.num_kv_heads;
    kernel.run(a.chunks.split ? a.schedule.chunk_items[index] : WorkItem{index, 0}, item % a.num_kv_heads);
  }
}

}  // namespace

template <>
void run_op(const DecodeCompressedAttention& a, const Gpu& gpu, cudaStream_t stream) {
  const Config& config = *a.config;
  const std::int64_t rows_per_tile =
      a.tokens * config.heads_per_group() <= 16 * a.sequences ? 16 : std::int64_t{tile_rows};
  visit_split_shape<4>(a, rows_per_tile, [&]<class Shape>(std::type_identity<Shape>) {
    using T = typename Shape::T;
    const StepSchedule schedule(a);
    const StepScratch scratch(a, a.summaries.ranks == 1);
    const Problem<T> problem{static_cast<const T*>(a.q),
                             key_pools<T>(config, a.summaries.k, a.summaries.v, a.summaries.page, a.summaries.page),
                             SummaryPages(a.summaries),
                             WorkRule(config),
                             schedule,
                             scratch.chunks,
                             scratch.scores,
                             scratch.score_stride,
                             static_cast<float*>(a.out),
                             static_cast<float*>(a.log_sum_exp),
                             scale_log2(config),
                             static_cast<int>(config.num_q_heads),
                             static_cast<int>(config.num_kv_heads)};
    const std::int64_t items =
        std::int64_t{schedule.max_tiles} * (scratch.chunks.split ? schedule.chunks : 1) * config.num_kv_heads;
    launch("compressed_attention",
           {gpu, stream, persistent_blocks(gpu, items, resident_blocks<Shape>()), Shape::threads, Shape::shared_bytes},
           compressed_attention_kernel<Shape>, problem);
  });
}

}  // namespace cpnsa::cuda::decode
