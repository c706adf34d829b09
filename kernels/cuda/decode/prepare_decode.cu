// The schedule of a step, by one thread block: checks the batch, then lists the work of the step's kernels.

#include "kernels/cuda/common/check.hpp"
#include "kernels/cuda/decode/launch.cuh"
#include "kernels/cuda/decode/run_op.hpp"
#include "kernels/cuda/decode/schedule.hpp"

namespace cpnsa::cuda::decode {
namespace {

constexpr int block_threads = 256;
constexpr int block_warps = block_threads / 32;

struct Batch {
  const std::int32_t* slots;
  const std::int32_t* lengths;
  const std::int32_t* cu_q;
  int sequences;
  int tokens;
  int num_slots;
  std::int64_t max_length;
  int num_kv_heads;
};

/// The sum of the threads' counts before this thread's, and of all.
struct Sums {
  int before;
  int all;
};

__device__ __forceinline__ Sums sum_before(int count) {
  __shared__ int warps[block_warps];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  int sum = count;
#pragma unroll
  for (int by = 1; by < 32; by *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, sum, by);
    if (lane >= by) sum += other;
  }
  __syncthreads();  // the sums before have been read
  if (lane == 31) warps[warp] = sum;
  __syncthreads();
  Sums result{sum - count, 0};
#pragma unroll
  for (int w = 0; w < block_warps; ++w) {
    if (w < warp) result.before += warps[w];
    result.all += warps[w];
  }
  return result;
}

/// Sequence b of the batch, checked; without rows if it may have none.
__device__ Sequence read_sequence(const Batch& batch, int b) {
  Sequence none{0, 0, 0, 0};
  if (b >= batch.sequences) return none;
  const int slot = batch.slots ? batch.slots[b] : b;
  const std::int64_t row = batch.cu_q[b], rows = batch.cu_q[b + 1] - row;
  if (slot < 0 || slot >= batch.num_slots || rows <= 0 || row < 0 || row + rows > batch.tokens) return none;
  const std::int64_t position = batch.lengths[slot];
  if (position < 0 || position + rows > batch.max_length) return none;
  return {slot, static_cast<int>(row), static_cast<int>(rows), static_cast<int>(position)};
}

/// Calls function(first, rows) for the tiles of a sequence. All rows of a tile have chunks of the same length.
template <class Function>
__device__ void for_each_tile(const WorkRule& rule, const Sequence& sequence, Function&& function) {
  for (int query = 0; query < sequence.rows;) {
    const int left = rule.longer_chunks_from(sequence.position + query) - sequence.position;
    const int end = min(sequence.rows, left) * rule.heads_per_group;
    for (int first = query * rule.heads_per_group; first < end; first += tile_rows)
      function(first, min(tile_rows, end - first));
    query = end / rule.heads_per_group;
  }
}

__device__ int completed_begin(const WorkRule& rule, const Sequence& sequence) {
  return max(rule.trailing, sequence.position / rule.stride);
}
__device__ int completed_count(const WorkRule& rule, const Sequence& sequence) {
  return max(0, (sequence.position + sequence.rows) / rule.stride - completed_begin(rule, sequence));
}

/// The sequences, their rows, tiles and completed summaries.
__device__ void list_sequences(const Batch& batch, const WorkRule& rule, const StepSchedule& schedule, Counts& counts) {
  int rows_before = 0;
  for (int base = 0; base < batch.sequences; base += block_threads) {
    Sequence sequence = read_sequence(batch, base + static_cast<int>(threadIdx.x));
    const Sums rows = sum_before(sequence.rows);  // sequences that claim the same rows have more than there are
    if (rows_before + rows.before + sequence.rows > batch.tokens) sequence.rows = 0;
    rows_before = min(batch.tokens, rows_before + rows.all);
    int tiles = 0;
    for_each_tile(rule, sequence, [&](int, int) { ++tiles; });
    const Sums index = sum_before(sequence.rows > 0), tile = sum_before(tiles),
               completed = sum_before(completed_count(rule, sequence));
    if (sequence.rows > 0) {
      const int own = counts.sequences + index.before;
      schedule.sequences[own] = sequence;
      int at = counts.tiles + tile.before;
      for_each_tile(rule, sequence, [&](int first, int length) {
        if (at < schedule.max_tiles) schedule.tiles[at++] = {own, first, length};
      });
      for (int i = 0; i < completed_count(rule, sequence); ++i)
        if (counts.completed + completed.before + i < schedule.max_completed)
          schedule.completed[counts.completed + completed.before + i] = {sequence.slot,
                                                                         completed_begin(rule, sequence) + i};
    }
    counts.sequences += index.all;
    counts.tiles = min(schedule.max_tiles, counts.tiles + tile.all);
    counts.completed = min(schedule.max_completed, counts.completed + completed.all);
  }
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int i = static_cast<int>(threadIdx.x) / 32; i < counts.sequences; i += block_warps) {
    const Sequence sequence = schedule.sequences[i];
    for (int r = lane; r < sequence.rows; r += 32)
      schedule.rows[sequence.row + r] = {sequence.slot, sequence.position + r};
  }
  __syncthreads();
}

/// Lists items (owner, 0), (owner, 1), ... for each of `owners`. Returns their number.
template <class ChunksOf>
__device__ int list_items(int owners, ChunksOf&& chunks_of, WorkItem* items) {
  int count = 0;
  for (int base = 0; base < owners; base += block_threads) {
    const int owner = base + static_cast<int>(threadIdx.x), chunks = owner < owners ? chunks_of(owner) : 0;
    const Sums sums = sum_before(chunks);
    for (int chunk = 0; chunk < chunks; ++chunk) items[count + sums.before + chunk] = {owner, chunk};
    count += sums.all;
  }
  return count;
}

__global__ void __launch_bounds__(block_threads)
    prepare_decode_kernel(const Batch batch, const WorkRule rule, const StepSchedule schedule) {
  ptx::wait_for_previous_grid();
  for (int i = static_cast<int>(threadIdx.x); i < batch.tokens; i += block_threads) schedule.rows[i] = {-1, 0};
  for (int i = static_cast<int>(threadIdx.x); i < schedule.counter_count; i += block_threads)
    schedule.tile_counters[i] = 0;
  __syncthreads();
  Counts counts{};
  list_sequences(batch, rule, schedule, counts);
  counts.chunk_items = list_items(
      counts.tiles,
      [&](int i) {
        const Tile tile = schedule.tiles[i];
        const int last = (tile.first + tile.rows - 1) / rule.heads_per_group;
        return rule.chunks(rule.summaries_end(schedule.sequences[tile.sequence].position + last));
      },
      schedule.chunk_items);
  counts.select_items = list_items(
      batch.tokens,
      [&](int i) { return schedule.rows[i].slot < 0 ? 0 : rule.select_chunks(schedule.rows[i].position); },
      schedule.select_items);
  if (threadIdx.x == 0) *schedule.counts = counts;
}

}  // namespace

template <>
void run_op(const PrepareDecode& a, const Gpu& gpu, cudaStream_t stream) {
  const Batch batch{a.slots,
                    a.lengths,
                    a.cu_q,
                    static_cast<int>(a.sequences),
                    static_cast<int>(a.tokens),
                    static_cast<int>(a.num_slots),
                    a.max_length,
                    static_cast<int>(a.config->num_kv_heads)};
  launch("prepare_decode", {gpu, stream, dim3(1), block_threads}, prepare_decode_kernel, batch, WorkRule(*a.config),
         StepSchedule(a));
}

}  // namespace cpnsa::cuda::decode
