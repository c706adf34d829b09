#include <algorithm>
#include <bit>
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>

#include "cpnsa/arena.hpp"
#include "kernels/cuda/common/check.hpp"
#include "kernels/cuda/schedule/key_tiles.hpp"
#include "kernels/cuda/schedule/segment_schedule.hpp"
#include "kernels/cuda/schedule/segment_search.cuh"
#include "kernels/cuda/schedule/selected_queries.hpp"

namespace cpnsa::cuda {
namespace {

constexpr int block_threads = 256;

struct Sizes {
  std::int64_t entries;  // choices of all rows and heads
  std::int64_t pairs;
  int part_queries;

  std::int64_t max_parts() const { return std::min(pairs, entries) + entries / part_queries; }
  int key_bits() const { return std::bit_width(static_cast<std::uint64_t>(pairs)); }  // `pairs` stands for no block
};

using Keys = cub::DoubleBuffer<std::uint32_t>;
using Rows = cub::DoubleBuffer<std::int32_t>;

std::size_t sort_bytes(const Sizes& sizes) {
  std::size_t bytes = 0;
  Keys keys;
  Rows rows;
  check(cub::DeviceRadixSort::SortPairs(nullptr, bytes, keys, rows, sizes.entries, 0, sizes.key_bits()),
        "cub::DeviceRadixSort::SortPairs");
  return bytes;
}

std::size_t scan_bytes(const Sizes& sizes) {
  std::size_t bytes = 0;
  const std::int32_t* in = nullptr;
  std::int32_t* out = nullptr;
  check(cub::DeviceScan::ExclusiveSum(nullptr, bytes, in, out, sizes.pairs + 1), "cub::DeviceScan::ExclusiveSum");
  return bytes;
}

struct Buffers {
  Keys keys;
  Rows rows;
  std::int64_t* first_row;
  std::int32_t* first_part;
  std::int32_t* parts;
  std::int32_t* pair_of_part;
  std::size_t temporary_bytes;
  void* temporary;

  Buffers(Arena& arena, const Sizes& sizes)
      : keys(arena.take<std::uint32_t>(sizes.entries), nullptr),
        rows(arena.take<std::int32_t>(sizes.entries), nullptr) {
    keys.d_buffers[1] = arena.take<std::uint32_t>(sizes.entries);
    rows.d_buffers[1] = arena.take<std::int32_t>(sizes.entries);
    first_row = arena.take<std::int64_t>(sizes.pairs + 1);
    first_part = arena.take<std::int32_t>(sizes.pairs + 1);
    parts = arena.take<std::int32_t>(sizes.pairs + 1);
    pair_of_part = arena.take<std::int32_t>(sizes.max_parts());
    temporary_bytes = std::max(sort_bytes(sizes), scan_bytes(sizes));
    temporary = arena.take(temporary_bytes);
  }
};

struct Selection {
  const Segment* segments;
  int segment_count;
  const std::int32_t* selected;  ///< [rows, G, n]
  std::int64_t entries;
  int num_kv_heads;
  int group_begin;
  int num_heads;  ///< KV heads from group_begin on
  std::int64_t blocks;
  int select_count;
  std::uint32_t pairs;
};

// In the order of rows, which the sort keeps among equal keys.
__global__ void __launch_bounds__(block_threads)
    list_choices_kernel(Selection a, std::uint32_t* keys, std::int32_t* rows) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * block_threads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * block_threads + threadIdx.x; i < a.entries; i += step) {
    const std::int64_t row = i / (a.num_heads * a.select_count);
    const int choice = static_cast<int>(i % (a.num_heads * a.select_count));
    const int head = choice / a.select_count;
    const std::int32_t block =
        a.selected[(row * a.num_kv_heads + a.group_begin + head) * a.select_count + choice % a.select_count];
    rows[i] = static_cast<std::int32_t>(row);
    keys[i] = block < 0 ? a.pairs
                        : static_cast<std::uint32_t>(head * a.blocks +
                                                     segment_of_row(a.segments, a.segment_count, row).block + block);
  }
}

// The first entry whose key is `key` or more.
__device__ std::int64_t lower_bound(const std::uint32_t* keys, std::int64_t count, std::uint32_t key) {
  std::int64_t first = 0;
  while (count > 0) {
    const std::int64_t half = count / 2;
    if (keys[first + half] < key) {
      first += half + 1;
      count -= half + 1;
    } else {
      count = half;
    }
  }
  return first;
}

__global__ void __launch_bounds__(block_threads)
    find_lists_kernel(const std::uint32_t* keys, std::int64_t entries, std::int64_t pairs, int part_queries,
                      std::int64_t* first_row, std::int32_t* parts) {
  const std::int64_t pair = static_cast<std::int64_t>(blockIdx.x) * block_threads + threadIdx.x;
  if (pair > pairs) return;
  const std::int64_t first = lower_bound(keys, entries, static_cast<std::uint32_t>(pair));
  const std::int64_t last = pair < pairs ? lower_bound(keys, entries, static_cast<std::uint32_t>(pair + 1)) : first;
  first_row[pair] = first;
  parts[pair] = static_cast<std::int32_t>((last - first + part_queries - 1) / part_queries);
}

__global__ void __launch_bounds__(block_threads)
    list_parts_kernel(const std::int32_t* first_part, std::int64_t pairs, std::int32_t* pair_of_part) {
  const std::int64_t pair = static_cast<std::int64_t>(blockIdx.x) * block_threads + threadIdx.x;
  if (pair >= pairs) return;
  for (std::int32_t part = first_part[pair]; part < first_part[pair + 1]; ++part)
    pair_of_part[part] = static_cast<std::int32_t>(pair);
}

int part_queries_of(const Config& config) {
  return static_cast<int>(std::max<std::int64_t>(1, rows_per_part / config.heads_per_group()));
}

unsigned blocks_for(std::int64_t items) {
  return static_cast<unsigned>(std::min<std::int64_t>((items + block_threads - 1) / block_threads, 1 << 16));
}

}  // namespace

SelectedQueries list_selected_queries(const SelectedAttentionBackward& a, cudaStream_t stream) {
  const Config& config = *a.config;
  const CudaSegmentSchedule& schedule = cuda_schedule(a.queries);
  const std::int64_t heads = a.group_end - a.group_begin;
  std::int64_t blocks = 0;
  for (const Segment& segment : schedule.segments)
    blocks = std::max(blocks, segment.block + config.blocks_of(segment.position + segment.rows));
  const Sizes sizes{schedule.rows * heads * config.select_count, blocks * heads, part_queries_of(config)};

  Arena arena(a.scratch);
  Buffers buffers(arena, sizes);
  const Selection selection{schedule.device_segments(),
                            static_cast<int>(schedule.segments.size()),
                            a.selected,
                            sizes.entries,
                            static_cast<int>(config.num_kv_heads),
                            static_cast<int>(a.group_begin),
                            static_cast<int>(heads),
                            blocks,
                            static_cast<int>(config.select_count),
                            static_cast<std::uint32_t>(sizes.pairs)};
  list_choices_kernel<<<blocks_for(sizes.entries), block_threads, 0, stream>>>(selection, buffers.keys.Current(),
                                                                               buffers.rows.Current());
  check_launch("list_choices");
  check(cub::DeviceRadixSort::SortPairs(buffers.temporary, buffers.temporary_bytes, buffers.keys, buffers.rows,
                                        sizes.entries, 0, sizes.key_bits(), stream),
        "cub::DeviceRadixSort::SortPairs");
  find_lists_kernel<<<static_cast<unsigned>(sizes.pairs / block_threads + 1), block_threads, 0, stream>>>(
      buffers.keys.Current(), sizes.entries, sizes.pairs, sizes.part_queries, buffers.first_row, buffers.parts);
  check_launch("find_lists");
  check(cub::DeviceScan::ExclusiveSum(buffers.temporary, buffers.temporary_bytes,
                                      static_cast<const std::int32_t*>(buffers.parts), buffers.first_part,
                                      sizes.pairs + 1, stream),
        "cub::DeviceScan::ExclusiveSum");
  list_parts_kernel<<<static_cast<unsigned>(sizes.pairs / block_threads + 1), block_threads, 0, stream>>>(
      buffers.first_part, sizes.pairs, buffers.pair_of_part);
  check_launch("list_parts");
  return {buffers.rows.Current(),
          buffers.first_row,
          buffers.first_part,
          buffers.pair_of_part,
          sizes.pairs,
          sizes.max_parts(),
          sizes.part_queries,
          static_cast<std::int32_t>(std::max<std::int64_t>(1, blocks)),
          arena.take(0)};
}

std::size_t selected_queries_bytes(const ProblemSize& size) {
  Arena arena;
  Buffers(arena, {size.rows * size.config->num_kv_heads * size.config->select_count,
                  size.blocks * size.config->num_kv_heads, part_queries_of(*size.config)});
  return arena.used();
}

}  // namespace cpnsa::cuda
