// DecodeSelectBlocks: a work item is a row, a KV head and a chunk of blocks. Block scores are folded from importances,
// which are sums of probabilities over the group's heads, ascending; the scores that the compressed branch stored are
// used, or computed again with the same instructions. The last thread block that arrives merges the best blocks of the
// chunks; the order of blocks is total, so the result does not depend on the order of merging.

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/common/packs.cuh"
#include "kernels/cuda/common/selection_rule.cuh"
#include "kernels/cuda/common/swizzled_tile.cuh"
#include "kernels/cuda/decode/best_blocks.cuh"
#include "kernels/cuda/decode/launch.cuh"
#include "kernels/cuda/decode/pages.hpp"
#include "kernels/cuda/decode/run_op.hpp"
#include "kernels/cuda/decode/scratch.hpp"

namespace cpnsa::cuda::decode {
namespace {

constexpr int block_threads = 256;
constexpr int tile_keys = 8 * (block_threads / 32);  ///< 8 for each warp
constexpr int merged_candidates = 1024;              ///< of the chunks' best blocks at a time

/// How scores are found: those that are stored, or from queries and keys of up to Dqk channels.
template <class Element, int Dqk, bool Stored>
struct ScoreSource {
  using T = Element;
  static constexpr bool stored = Stored;
  using Queries = SwizzledTile<16, Dqk>;
  using Keys = SwizzledTile<tile_keys, Dqk>;
  static constexpr int resident_blocks = Stored ? 4 : 2;  ///< of a multiprocessor
  static constexpr int pitch = tile_keys + 1;
  static constexpr int shared_bytes =
      Stored ? 0 : Queries::bytes + Keys::bytes + (16 * pitch * static_cast<int>(sizeof(float)) + 127) / 128 * 128;
};

/// The rest of the shared memory, in 8-byte words and then floats.
struct SharedSizes {
  int best;
  int candidates;
  int heads;
  int importances;

  SharedSizes(const WorkRule& rule, const SelectionRule& selection, bool overlapping)
      : best(selection.num_scored()),
        candidates(best + std::max(merged_candidates, rule.blocks_per_chunk)),
        heads(rule.heads_per_group),
        importances(rule.blocks_per_chunk * (rule.strides_per_block + (overlapping ? rule.trailing : 0)) +
                    rule.trailing) {}

  std::size_t bytes() const { return 8 * (best + candidates) + 4 * (heads + importances); }
};

template <class T>
struct Problem {
  const T* q;
  const T* keys;  ///< [pages, page, G, d_qk]
  SummaryPages pages;
  WorkRule rule;
  SelectionRule selection;
  SharedSizes sizes;
  StepSchedule schedule;
  const float* log_sum_exp;  ///< [tokens, H]
  const float* scores;       ///< [tokens, H, score_stride], not scaled
  std::int64_t score_stride;
  std::uint64_t* best;       ///< [tokens, G, select_chunks, num_scored]; null: one work item per row and KV head
  std::int32_t* selected;    ///< [tokens, G, n]; null: the best candidates are wanted
  float* candidate_scores;   ///< [tokens, G, n]
  std::int32_t* candidates;  ///< [tokens, G, n]
  float scale_log2;
  int num_q_heads;
  int num_kv_heads;
  int d_qk;
};

/// A row and KV head, and the summaries below which the row sees them.
struct RowHead {
  int token;
  int slot;
  int position;
  int group;
  int end;
};

/// Blocks that are scored together, counted without those of other ranks.
struct BlockChunk {
  int begin;
  int end;
};

template <class Source>
class Kernel {
 public:
  using T = typename Source::T;

  __device__ Kernel(const Problem<T>& problem, unsigned char* shared)
      : a_(problem),
        tiles_(shared),
        best_(reinterpret_cast<std::uint64_t*>(shared + Source::shared_bytes)),
        candidates_(best_ + problem.sizes.best),
        log_sum_exps_(reinterpret_cast<float*>(candidates_ + problem.sizes.candidates)),
        importances_(log_sum_exps_ + problem.sizes.heads) {}

  __device__ void run(const RowHead& row, int chunk) {
    __syncthreads();  // the item before has been written
    if (!a_.rule.chooses(row.position)) return write_all(row);
    const int count = a_.selection.num_scored(), chunks = a_.rule.select_chunks(row.position);
    for (int head = static_cast<int>(threadIdx.x); head < a_.rule.heads_per_group; head += block_threads)
      log_sum_exps_[head] = a_.log_sum_exp[first_pair(row) + head] * log2_e;
    for (int i = static_cast<int>(threadIdx.x); i < count; i += block_threads) best_[i] = 0;
    if (!a_.best || chunks == 1) {
      for (int c = 0; c < chunks; ++c) add_chunk(row, c);
      return write(row);
    }
    add_chunk(row, chunk);
    std::uint64_t* const lists =
        a_.best + (row.token * std::int64_t{a_.num_kv_heads} + row.group) * a_.schedule.select_chunks * count;
    for (int i = static_cast<int>(threadIdx.x); i < count; i += block_threads) lists[chunk * count + i] = best_[i];
    if (!arrive_last(a_.schedule.select_counters + row.token * a_.num_kv_heads + row.group, chunks)) return;
    for (int i = static_cast<int>(threadIdx.x); i < count; i += block_threads) best_[i] = 0;
    for (int first = 0; first < chunks * count; first += merged_candidates) {
      const int size = min(merged_candidates, chunks * count - first);
      for (int i = static_cast<int>(threadIdx.x); i < size; i += block_threads)
        candidates_[count + i] = __ldcg(lists + first + i);
      keep_best(size);
    }
    write(row);
  }

 private:
  __device__ std::int64_t first_pair(const RowHead& row) const {
    return static_cast<std::int64_t>(row.token) * a_.num_q_heads + row.group * a_.rule.heads_per_group;
  }

  /// Merges candidates_[num_scored, num_scored + size) into the best ones.
  __device__ void keep_best(int size) {
    const int count = a_.selection.num_scored();
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < count; i += block_threads) candidates_[i] = best_[i];
    __syncthreads();
    if (threadIdx.x < 32) take_best(candidates_, count + size, best_, count);
    __syncthreads();
  }

  __device__ bool overlapping() const { return a_.pages.ranks > 1; }
  /// Importances from one block to the next. Where blocks may be of different pages, those of each block are separate.
  __device__ int pitch() const {
    return overlapping() ? a_.rule.strides_per_block + a_.rule.trailing : a_.rule.strides_per_block;
  }
  __device__ int blocks_per_page() const { return a_.pages.strides / a_.rule.strides_per_block; }
  __device__ int token_page(int own_block) const {
    return overlapping() ? own_block / blocks_per_page() * a_.pages.ranks + a_.pages.rank : 0;
  }
  /// The index in the sequence of a block of this rank.
  __device__ int block(int own_block) const {
    return overlapping() ? token_page(own_block) * blocks_per_page() + own_block % blocks_per_page() : own_block;
  }
  /// Blocks of this rank below `end`.
  __device__ int own_blocks(int end) const {
    return overlapping() ? a_.pages.own_before(end * a_.rule.strides_per_block) / a_.rule.strides_per_block : end;
  }

  __device__ void add_chunk(const RowHead& row, int index) {
    const int blocks = own_blocks(a_.selection.candidates_end(row.position));
    const BlockChunk chunk{index * a_.rule.blocks_per_chunk, min((index + 1) * a_.rule.blocks_per_chunk, blocks)};
    const int size = max(0, chunk.end - chunk.begin);
    const int summaries = size == 0 ? 0 : (size - 1) * pitch() + a_.rule.strides_per_block + a_.rule.trailing;
    __syncthreads();
    if constexpr (Source::stored) {
      read_importances(row, chunk, summaries);
    } else {
      compute_importances(row, chunk, summaries);
    }
    __syncthreads();
    const int count = a_.selection.num_scored();
    for (int i = static_cast<int>(threadIdx.x); i < size; i += block_threads)
      candidates_[count + i] = rank(row, block(chunk.begin + i), importances_ + i * pitch());
    keep_best(size);
  }

  /// The number x of the summary that an importance belongs to.
  __device__ int summary(const BlockChunk& chunk, int index) const {
    return block(chunk.begin + index / pitch()) * a_.rule.strides_per_block + index % pitch();
  }
  __device__ bool sees(const RowHead& row, int x) const { return x >= a_.rule.trailing && x < row.end; }

  __device__ __forceinline__ float probability(float score, int head) const {
    return ptx::exp2_approximate(__fmaf_rn(score, a_.scale_log2, -log_sum_exps_[head]));
  }

  __device__ void read_importances(const RowHead& row, const BlockChunk& chunk, int summaries) {
    const int begin = chunk.begin * a_.rule.strides_per_block;
    for (int i = static_cast<int>(threadIdx.x); i < summaries; i += block_threads) {
      float importance = 0.f;
      if (sees(row, begin + i)) {
        const float* const scores = a_.scores + first_pair(row) * a_.score_stride + begin + i;
#pragma unroll 16
        for (int head = 0; head < a_.rule.heads_per_group; ++head)
          importance = __fadd_rn(importance, probability(__ldcg(scores + head * a_.score_stride), head));
      }
      importances_[i] = importance;
    }
  }

  __device__ void compute_importances(const RowHead& row, const BlockChunk& chunk, int summaries) {
    __shared__ PageRow places[tile_keys];
    const std::uint32_t queries = ptx::shared_address(tiles_), keys = queries + Source::Queries::bytes;
    float* const scores = reinterpret_cast<float*>(tiles_ + Source::Queries::bytes + Source::Keys::bytes);
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const std::int64_t stride = static_cast<std::int64_t>(a_.num_kv_heads) * a_.d_qk;
    for (int i = static_cast<int>(threadIdx.x); i < summaries; i += block_threads) importances_[i] = 0.f;
    for (int first_head = 0; first_head < a_.rule.heads_per_group; first_head += 16) {
      const int heads = min(16, a_.rule.heads_per_group - first_head);
      for (int first = 0; first < summaries; first += tile_keys) {
        __syncthreads();  // the tile before has been read
        if (threadIdx.x < tile_keys) {
          const int i = first + static_cast<int>(threadIdx.x), x = i < summaries ? summary(chunk, i) : 0;
          places[threadIdx.x] = i < summaries && sees(row, x)
                                    ? a_.pages.find(row.slot, token_page(chunk.begin + i / pitch()), x)
                                    : PageRow{-1, 0};
        }
        __syncthreads();
        load_rows<typename Source::Queries, block_threads>(queries, a_.d_qk, a_.q, [&](int r) -> const T* {
          return r < heads ? a_.q + (first_pair(row) + first_head + r) * a_.d_qk : nullptr;
        });
        load_rows<typename Source::Keys, block_threads>(keys, a_.d_qk, a_.q, [&](int r) -> const T* {
          const PageRow at = places[r];
          return at.id < 0 ? nullptr
                           : a_.keys + (static_cast<std::int64_t>(at.id) * a_.pages.page + at.row) * stride +
                                 row.group * a_.d_qk;
        });
        ptx::cp_async_commit();
        ptx::cp_async_wait<0>();
        __syncthreads();
        float s[4] = {};
        const std::uint32_t query = queries + Source::Queries::offset(lane % 16, lane / 16),
                            key = keys + Source::Keys::offset(warp * 8 + lane % 8, lane / 8);
#pragma unroll
        for (int step = 0; step < Source::Queries::chunks / 4;
             ++step) {  // as SplitAttention does it, for the same bits
          std::uint32_t q[2][4], b[4];
          ptx::ldmatrix_x4(q[0], Source::Queries::advance(query, 0, step * 4));
          ptx::ldmatrix_x4(q[1], Source::Queries::advance(query, 0, step * 4 + 2));
          ptx::ldmatrix_x4(b, Source::Keys::advance(key, 0, step * 4));
          ptx::mma_m16n8k16<T>(s, q[0], b[0], b[1]);
          ptx::mma_m16n8k16<T>(s, q[1], b[2], b[3]);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i)
          scores[(lane / 4 + i / 2 * 8) * Source::pitch + warp * 8 + lane % 4 * 2 + i % 2] = s[i];
        __syncthreads();
        const int key_index = static_cast<int>(threadIdx.x);
        if (key_index < tile_keys && first + key_index < summaries && sees(row, summary(chunk, first + key_index))) {
          float importance = importances_[first + key_index];
          for (int head = 0; head < heads; ++head)
            importance =
                __fadd_rn(importance, probability(scores[head * Source::pitch + key_index], first_head + head));
          importances_[first + key_index] = importance;
        }
      }
    }
  }

  /// A block with its score, or 0 if it does not compete. The block's first importance is that of its first stride.
  __device__ std::uint64_t rank(const RowHead& row, int block, const float* importances) const {
    if (block < a_.selection.init_blocks || block >= a_.selection.candidates_end(row.position)) return 0;
    const int begin = block * a_.rule.strides_per_block, end = begin + a_.rule.strides_per_block;
    float score = 0.f;
    for (int i = 0; i < a_.rule.strides_per_block + a_.rule.trailing; ++i) {
      const int x = begin + i;
      if (!sees(row, x)) continue;
      // Strides that the summary and the block share.
      const int overlap = min(x + 1, end) - max(x - a_.rule.trailing, begin);
      score = __fmaf_rn(static_cast<float>(overlap), importances[i], score);
    }
    return RankedBlock::pack(score, block);
  }

  __device__ void write_all(const RowHead& row) const {
    const std::int64_t item = (row.token * std::int64_t{a_.num_kv_heads} + row.group) * a_.selection.select_count;
    for (int i = static_cast<int>(threadIdx.x); i < a_.selection.select_count; i += block_threads) {
      if (a_.selected) {
        a_.selected[item + i] = i < a_.rule.causal_blocks(row.position) ? i : -1;
      } else {
        a_.candidate_scores[item + i] = 0.f;
        a_.candidates[item + i] = -1;
      }
    }
  }

  __device__ void write(const RowHead& row) const {
    const int count = a_.selection.num_scored();
    const std::int64_t item = (row.token * std::int64_t{a_.num_kv_heads} + row.group) * a_.selection.select_count;
    if (a_.selected)
      return write_selected(a_.selection, a_.selection.candidates_end(row.position), best_, a_.selected + item,
                            static_cast<int>(threadIdx.x), block_threads);
    for (int i = static_cast<int>(threadIdx.x); i < a_.selection.select_count; i += block_threads) {
      const std::uint64_t own = i < count ? best_[i] : 0;
      a_.candidate_scores[item + i] = own == 0 ? 0.f : RankedBlock::score(own);
      a_.candidates[item + i] = own == 0 ? -1 : RankedBlock::block(own);
    }
  }

  const Problem<T>& a_;
  unsigned char* tiles_;
  std::uint64_t* best_;        ///< [num_scored], descending
  std::uint64_t* candidates_;  ///< first the best ones so far
  float* log_sum_exps_;        ///< [R], times log2(e)
  float* importances_;
};

template <class Source>
__global__ void __launch_bounds__(block_threads, Source::resident_blocks)
    select_blocks_kernel(const __grid_constant__ Problem<typename Source::T> a) {
  extern __shared__ __align__(1024) unsigned char shared[];
  ptx::wait_for_previous_grid();
  ptx::allow_next_grid();
  Kernel<Source> kernel(a, shared);
  const int items = (a.best ? a.schedule.counts->select_items : a.schedule.tokens) * a.num_kv_heads;
  for (int item = static_cast<int>(blockIdx.x); item < items; item += static_cast<int>(gridDim.x)) {
    const int index = item / a.num_kv_heads;
    const WorkItem work = a.best ? a.schedule.select_items[index] : WorkItem{index, 0};
    const Row row = a.schedule.rows[work.owner];
    if (row.slot < 0) continue;
    kernel.run({work.owner, row.slot, row.position, item % a.num_kv_heads, a.rule.summaries_end(row.position)},
               work.chunk);
  }
}

template <class Source>
void launch_select(const DecodeSelectBlocks& a, const StepScratch& scratch, const Gpu& gpu, cudaStream_t stream) {
  using T = typename Source::T;
  const Config& config = *a.config;
  const WorkRule rule(config);
  const SelectionRule selection(config);
  const SharedSizes sizes(rule, selection, a.summaries.ranks > 1);
  const StepSchedule schedule(a);
  const Problem<T> problem{static_cast<const T*>(a.q),
                           static_cast<const T*>(a.summaries.k),
                           SummaryPages(a.summaries),
                           rule,
                           selection,
                           sizes,
                           schedule,
                           static_cast<const float*>(a.log_sum_exp),
                           scratch.scores,
                           scratch.score_stride,
                           scratch.best,
                           a.selected,
                           static_cast<float*>(a.scores),
                           a.candidates,
                           scale_log2(config),
                           static_cast<int>(config.num_q_heads),
                           static_cast<int>(config.num_kv_heads),
                           static_cast<int>(config.head_dim_qk)};
  const std::int64_t items = a.tokens * config.num_kv_heads * (scratch.best ? schedule.select_chunks : 1);
  const std::size_t shared_bytes = Source::shared_bytes + sizes.bytes();
  launch("select_blocks",
         {gpu, stream, persistent_blocks(gpu, items, Source::resident_blocks), block_threads, shared_bytes},
         select_blocks_kernel<Source>, problem);
}

}  // namespace

template <>
void run_op(const DecodeSelectBlocks& a, const Gpu& gpu, cudaStream_t stream) {
  const StepScratch scratch(a, a.summaries.ranks == 1);
  visit_type(a.dtype, [&]<class T>(std::type_identity<T>) {
    if (scratch.scores) return launch_select<ScoreSource<T, 64, true>>(a, scratch, gpu, stream);
    if (a.config->head_dim_qk <= 64) return launch_select<ScoreSource<T, 64, false>>(a, scratch, gpu, stream);
    if (a.config->head_dim_qk <= 128) return launch_select<ScoreSource<T, 128, false>>(a, scratch, gpu, stream);
    return launch_select<ScoreSource<T, 256, false>>(a, scratch, gpu, stream);
  });
}

}  // namespace cpnsa::cuda::decode
