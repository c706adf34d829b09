#pragma once

// The work of Hopper's selected attention and of its dQ: persistent thread blocks walk tiles of neighbouring queries,
// and two warps of each build the union of the next tile's blocks while the consumers work on one.

#include "kernels/cuda/common/selected_union.cuh"
#include "kernels/cuda/sm90/attention/attention_launch.cuh"

namespace cpnsa::cuda::sm90 {

/// An item of work, as the builders publish it to the other warps.
struct alignas(16) SelectedItem {
  QueryTile tile;
  int group;     ///< KV head
  int position;  ///< of the tile's first query in its document
  bool given;    ///< false: there is none left
};

/// `Problem`: AttentionProblem or what extends it.
template <class Problem>
struct SelectedWork {
  Problem problem;
  WorkList work;                 ///< all tiles of one KV head after another: its keys and values stay in the L2
  const BlockLocation* table;    ///< [B, G]
  const std::int32_t* selected;  ///< [rows, G, n]
  int group_begin;
  int select_count;
  int words;
  int capacity;

  __device__ SelectedItem item(int index) const {
    const QueryTile tile = problem.tiles[work.tiles - 1 - index % work.tiles];
    const Segment& segment = problem.segments[tile.segment];
    return {tile, group_begin + index / work.tiles, static_cast<int>(segment.position + tile.row - segment.row), true};
  }
};

/// An Arrival (selected_stages.cuh) in shared memory.
using ArrivalWord = std::uint8_t;
enum class ArrivalsOf { keys, values };

/// In shared memory behind the layout: the unions, the locations of their blocks, and the arrivals of their keys and
/// values.
struct UnionBuffers {
  unsigned char* memory;
  int words;
  int capacity;

  __host__ __device__ static int locations_bytes(int capacity) { return (capacity * 4 + 15) / 16 * 16; }
  __host__ __device__ static int arrivals_bytes(int capacity) { return (capacity + 15) / 16 * 16; }
  __host__ __device__ static int buffer_bytes(int capacity) {
    return sizeof(SelectedItem) + SelectedUnion::list_bytes(capacity) + locations_bytes(capacity) +
           2 * arrivals_bytes(capacity);
  }
  __host__ __device__ static int bytes(int lists, int words, int capacity) {
    return lists * buffer_bytes(capacity) + SelectedUnion::bitmap_bytes(words);
  }

  /// The item of which list i is the union.
  __device__ SelectedItem& item(int i) const {
    return *reinterpret_cast<SelectedItem*>(memory + i * buffer_bytes(capacity));
  }
  __device__ SelectedUnion list(int lists, int i) const {
    return {memory + i * buffer_bytes(capacity) + sizeof(SelectedItem), capacity,
            memory + lists * buffer_bytes(capacity), words};
  }
  __device__ BlockLocation* locations(int i) const {
    return reinterpret_cast<BlockLocation*>(memory + i * buffer_bytes(capacity) + sizeof(SelectedItem) +
                                            SelectedUnion::list_bytes(capacity));
  }
  __device__ ArrivalWord* arrivals(ArrivalsOf kind, int i) const {
    return reinterpret_cast<ArrivalWord*>(locations(i)) + locations_bytes(capacity) +
           (kind == ArrivalsOf::keys ? 0 : arrivals_bytes(capacity));
  }
};

/// The builder warps: build the union of each tile, one ahead of the consumers.
template <class Shape, class Problem, class Shared>
__device__ __forceinline__ void build_unions(const SelectedWork<Problem>& a, const UnionBuffers& buffers,
                                             const Shared& smem) {
  __shared__ int next;
  const int thread = threadIdx.x - (Shape::threads - Shape::builders);
  const auto wait_for_all = [] { ptx::named_barrier(1, Shape::builders); };
  RingPosition<Shape::lists> ring;
  int item = a.work.first();
#pragma unroll 1
  for (; item < a.work.count(); ring.advance()) {
    const SelectedItem now = a.item(item);
    const QueryTile& tile = now.tile;
    const SelectedUnion list = buffers.list(Shape::lists, ring.stage);
    BlockLocation* const locations = buffers.locations(ring.stage);
    ptx::mbarrier_wait(smem.list_empty(ring.stage), ring.phase ^ 1);
    if (thread == 0) {
      buffers.item(ring.stage) = now;
      next = a.work.next();  // read by no thread any more: all have met in build()
    }
    list.template build<Shape::builders>(
        thread, wait_for_all, a.selected + (tile.row * a.problem.num_kv_heads + now.group) * a.select_count, tile.rows,
        a.select_count, static_cast<std::int64_t>(a.problem.num_kv_heads) * a.select_count,
        min(a.words, (now.position + tile.rows - 1) / Shape::keys / 32 + 1));
    const BlockLocation* const table =
        a.table + a.problem.segments[tile.segment].block * a.problem.num_kv_heads + now.group;
    for (int i = thread; i < *list.count; i += Shape::builders) {
      locations[i] = table[static_cast<std::int64_t>(list.blocks[i]) * a.problem.num_kv_heads];
      buffers.arrivals(ArrivalsOf::keys, ring.stage)[i] = 0;
      buffers.arrivals(ArrivalsOf::values, ring.stage)[i] = 0;
    }
    item = next;
    wait_for_all();  // the next round writes `next`
    ptx::mbarrier_arrive(smem.list_full(ring.stage));
  }
  ptx::mbarrier_wait(smem.list_empty(ring.stage), ring.phase ^ 1);
  if (thread == 0) buffers.item(ring.stage).given = false;
  ptx::mbarrier_arrive(smem.list_full(ring.stage));
}

struct UnionSize {
  int words;
  int capacity;
};

template <class Shape, class Stage>
UnionSize union_size(const Stage& a) {
  const std::int64_t blocks = a.config->blocks_of(cuda_schedule(a.queries).end_position());
  return {SelectedUnion::words(blocks),
          static_cast<int>(std::min<std::int64_t>(blocks, Shape::queries * a.config->select_count))};
}

template <class Shape, class Problem, class Stage>
SelectedWork<Problem> selected_work(const Stage& a, const Problem& problem, const WorkList& work) {
  const UnionSize size = union_size<Shape>(a);
  return {problem,
          work,
          a.table,
          a.selected,
          static_cast<int>(a.group_begin),
          static_cast<int>(a.config->select_count),
          size.words,
          size.capacity};
}

}  // namespace cpnsa::cuda::sm90
