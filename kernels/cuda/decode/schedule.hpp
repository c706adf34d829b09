#pragma once

// The schedule: PrepareDecode writes it on the device, and the kernels of a step find their work in it. Plain C++ but
// for __device__; sizes are functions of numbers that the host knows.

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cpnsa/arena.hpp"
#include "cpnsa/decode_ops.hpp"

namespace cpnsa::cuda::decode {

inline constexpr int tile_rows = 64;             ///< (query, head) rows of a tile of the compressed branch, at most
inline constexpr int min_chunk_summaries = 256;  ///< summaries of a chunk, the part that one work item attends to
inline constexpr int max_chunks = 64;            ///< of a row; chunks of longer sequences are longer
inline constexpr int scored_summaries = 512;     ///< about as many summaries are scored by one work item

/// One sequence of the step.
struct Sequence {
  int slot;
  int row;       ///< first row of the step's tensors
  int rows;      ///< tokens that the step appends
  int position;  ///< of the first of them
};

/// The sequence that a row of the step's tensors belongs to.
struct Row {
  int slot;  ///< -1: the row belongs to none
  int position;
};

/// (query, head) rows of one sequence and any KV head: row i stands for query (first + i) / R and head (first + i) % R.
struct Tile {
  int sequence;
  int first;
  int rows;
};

/// A chunk of the work of a tile or of a row.
struct WorkItem {
  int owner;
  int chunk;
};

/// A summary that the step's rows complete.
struct Completed {
  int slot;
  int x;  ///< its number: it ends with stride x
};

/// How work is cut up, by positions of the sequence alone, so that no result depends on the batch.
struct WorkRule {
  int stride;        ///< s
  int trailing;      ///< e = l / s - 1
  int block;         ///< m
  int select_count;  ///< n
  int local_blocks;
  int strides_per_block;  ///< m / s
  int heads_per_group;    ///< R
  int blocks_per_chunk;   ///< blocks that a work item of the selection scores

  explicit WorkRule(const Config& config)
      : stride(static_cast<int>(config.compress_stride)),
        trailing(static_cast<int>(config.compress_block / config.compress_stride) - 1),
        block(static_cast<int>(config.select_block)),
        select_count(static_cast<int>(config.select_count)),
        local_blocks(static_cast<int>(config.local_blocks)),
        strides_per_block(static_cast<int>(config.select_block / config.compress_stride)),
        heads_per_group(static_cast<int>(config.heads_per_group())),
        blocks_per_chunk(std::max(1, scored_summaries / strides_per_block)) {}

  /// A token sees the summaries x with trailing <= x < end.
  __host__ __device__ int summaries_end(int position) const { return (position + 1) / stride; }
  /// Summaries of a chunk, for rows that see those below `end`.
  __host__ __device__ static int chunk_summaries(int end) {
    int chunk = min_chunk_summaries;
    while (end > chunk * max_chunks) chunk *= 2;
    return chunk;
  }
  /// Chunks of a tile whose last row sees the summaries below `end`; one even if it sees none.
  __host__ __device__ static int chunks(int end) {
    const int chunk = chunk_summaries(end);
    return end <= chunk ? 1 : (end + chunk - 1) / chunk;
  }
  /// The position from which on chunks are longer than at `position`.
  __host__ __device__ int longer_chunks_from(int position) const {
    const std::int64_t end = static_cast<std::int64_t>(chunk_summaries(summaries_end(position))) * max_chunks;
    const std::int64_t from = (end + 1) * stride - 1;
    return from < 0x7fffffff ? static_cast<int>(from) : 0x7fffffff;
  }
  __host__ __device__ int causal_blocks(int position) const { return position / block + 1; }
  /// False where all causal blocks are selected, because there are at most n.
  __host__ __device__ bool chooses(int position) const { return causal_blocks(position) > select_count; }
  /// Work items of a row's selection.
  __host__ __device__ int select_chunks(int position) const {
    const int blocks = causal_blocks(position) - local_blocks;
    return !chooses(position) || blocks <= 0 ? 1 : (blocks + blocks_per_chunk - 1) / blocks_per_chunk;
  }
};

/// Upper bounds of the numbers of items, for steps of so many sequences and tokens.
struct Capacity {
  int max_sequences;
  int tokens;
  std::int64_t max_length;  ///< of a sequence, in tokens
  int max_end;              ///< summaries that a token sees, and their numbers, are below it
  int max_tiles;
  int chunks;         ///< of a tile
  int select_chunks;  ///< of a row
  int max_completed;

  Capacity(const Config& config, std::int64_t sequence_count, std::int64_t token_count, std::int64_t longest)
      : max_length(longest) {
    const WorkRule rule(config);
    const std::int64_t end = max_length / rule.stride;
    std::int64_t cuts = 1;  // no tile has rows on both sides of a position where chunks become longer
    for (std::int64_t at = std::int64_t{min_chunk_summaries} * decode::max_chunks; at < end; at *= 2) ++cuts;
    max_sequences = static_cast<int>(sequence_count);
    tokens = static_cast<int>(token_count);
    max_end = static_cast<int>(end);
    max_tiles =
        static_cast<int>((token_count * rule.heads_per_group + tile_rows - 1) / tile_rows + sequence_count * cuts);
    chunks = static_cast<int>(
        std::clamp<std::int64_t>((end + min_chunk_summaries - 1) / min_chunk_summaries, 1, decode::max_chunks));
    const std::int64_t blocks = (max_length + rule.block - 1) / rule.block;
    select_chunks = static_cast<int>(blocks / rule.blocks_per_chunk + 1);
    max_completed = static_cast<int>(std::min(token_count, token_count / rule.stride + sequence_count));
  }
};

/// How many items there are.
struct Counts {
  int sequences;
  int tiles;
  int chunk_items;
  int select_items;
  int completed;
};

/// The arrays of a schedule. Between kernels all counters are 0: the thread block that completes an item of work, as
/// the last of those that share it, resets its counter.
struct Schedule {
  Counts* counts;
  Sequence* sequences;     ///< [sequences]
  Row* rows;               ///< [tokens]
  Tile* tiles;             ///< [tiles]
  WorkItem* chunk_items;   ///< (tile, chunk of summaries)
  WorkItem* select_items;  ///< (row, chunk of blocks)
  Completed* completed;
  unsigned* tile_counters;      ///< [tiles, G]
  unsigned* select_counters;    ///< [tokens, G]
  unsigned* token_counters;     ///< [tokens, G]
  unsigned* compress_counters;  ///< [rows of 16 completed summaries, 2, G]
  int counter_count;            ///< of all counters, which are consecutive

  Schedule(Arena& arena, const Config& config, const Capacity& capacity) {
    const auto groups = static_cast<std::int64_t>(config.num_kv_heads);
    counts = arena.take<Counts>(1);
    sequences = arena.take<Sequence>(capacity.max_sequences);
    rows = arena.take<Row>(capacity.tokens);
    tiles = arena.take<Tile>(capacity.max_tiles);
    chunk_items = arena.take<WorkItem>(std::int64_t{capacity.max_tiles} * capacity.chunks);
    select_items = arena.take<WorkItem>(std::int64_t{capacity.tokens} * capacity.select_chunks);
    completed = arena.take<Completed>(capacity.max_completed);
    const std::int64_t by_tile = capacity.max_tiles * groups, by_token = capacity.tokens * groups;
    const std::int64_t by_completed = (2 * capacity.max_completed + 15) / 16 * 2 * groups;
    counter_count = static_cast<int>(by_tile + 2 * by_token + by_completed);
    tile_counters = arena.take<unsigned>(counter_count);
    select_counters = tile_counters + by_tile;
    token_counters = select_counters + by_token;
    compress_counters = token_counters + by_token;
  }
};

/// The schedule of a step, for ops and for kernels.
struct StepSchedule : Capacity, Schedule {
  /// For an op of a step: `Context` is DecodeContext or PrepareDecode. The op's schedule is constant but for counters.
  template <class Context>
  explicit StepSchedule(const Context& a)
      : StepSchedule(Arena(const_cast<void*>(static_cast<const void*>(a.schedule))),
                     Capacity(*a.config, a.sequences, a.tokens, a.max_length), *a.config) {}

 private:
  StepSchedule(Arena arena, const Capacity& capacity, const Config& config)
      : Capacity(capacity), Schedule(arena, config, capacity) {}
};

}  // namespace cpnsa::cuda::decode
