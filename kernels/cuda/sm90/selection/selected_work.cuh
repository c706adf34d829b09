#pragma once

// The work of Hopper's selected attention and of its dQ: persistent thread blocks walk tiles of neighbouring queries,
// and two warps of each build the union of the next tile's blocks while the consumers work on one.
//
// A consumer warp has 16 rows: the heads of a query, of several neighbouring queries, or a part of the heads of one. It
// walks the blocks that its queries chose, 64 keys at a time; rows whose query did not choose a block are masked.

#include "kernels/cuda/common/selected_union.cuh"
#include "kernels/cuda/sm90/attention/attention_launch.cuh"
#include "kernels/cuda/sm90/head_rows.cuh"

namespace cpnsa::cuda::sm90 {

/// An item of work, as the builders publish it to the other warps.
struct alignas(16) SelectedItem {
  QueryTile tile;
  int group;     ///< KV head
  int position;  ///< of the tile's first query in its document
  bool given;    ///< false: there is none left
};

/// The consumer warps and the rows of each, and the tiles of 64 keys that they walk. An entry of a union is a block, or
/// one of the tiles that a larger block consists of; a tile in shared memory holds one entry, or several small blocks
/// that are neighbours in the union. Every number is a constant in a kernel for a fixed number of heads, whose blocks
/// are of 64 tokens.
template <int Heads>
struct SelectedTiling {
  using Rows = HeadRows<Heads, 16>;
  using Union = BlockUnion<64>;
  static_assert(Rows::parts() == 1 && Rows::queries() == 1);

  explicit SelectedTiling(const Config&, int /*queries_per_warp*/ = 1) {}
  __host__ __device__ static Rows rows() { return Rows(Heads); }
  static constexpr int entries_per_block() { return 1; }
  static constexpr int entries_per_tile() { return 1; }
  static constexpr int keys_per_entry() { return tokens_per_block; }
  __device__ static int tiles(int entries) { return entries; }
};

template <>
struct SelectedTiling<any_heads> {
  using Rows = HeadRows<any_heads, 16>;
  using Union = BlockUnion<16>;

  /// `queries_per_warp`: at most; by default as many as its rows hold.
  explicit SelectedTiling(const Config& config, int queries_per_warp = 16)
      : rows_(static_cast<int>(config.heads_per_group()), queries_per_warp),
        entries_per_block_(static_cast<int>(std::max<std::int64_t>(1, config.select_block / tokens_per_block))),
        entries_per_tile_(static_cast<int>(std::max<std::int64_t>(1, tokens_per_block / config.select_block))) {}
  static bool serves(const Config& config) {
    return config.select_block % tokens_per_block == 0 || config.select_block == 16 || config.select_block == 32;
  }
  __host__ __device__ const Rows& rows() const { return rows_; }
  __host__ __device__ int entries_per_block() const { return entries_per_block_; }
  __host__ __device__ int entries_per_tile() const { return entries_per_tile_; }
  __host__ __device__ int keys_per_entry() const { return tokens_per_block / entries_per_tile_; }
  __device__ int tiles(int entries) const { return (entries + entries_per_tile_ - 1) / entries_per_tile_; }

 private:
  Rows rows_;
  int entries_per_block_;
  int entries_per_tile_;
};

/// The rows of the calling consumer warp.
template <class Tiling>
struct WarpRows {
  int unit;   ///< its bit in the masks of a union
  int query;  ///< of the tile: the first
  int slice;  ///< of the query heads (head_rows.cuh)

  /// `thread`: threadIdx.x, or the same hidden from the optimizer (ptx::opaque()).
  __device__ WarpRows(const Tiling& tiling, int group, int thread = static_cast<int>(threadIdx.x)) {
    const auto rows = tiling.rows();
    const int warp = thread / 32;
    unit = warp / rows.parts();
    query = unit * rows.queries();
    slice = group * rows.parts() + warp % rows.parts();
  }
};

/// The entries of a tile's union (BlockUnion::build()). A query has no entries behind itself.
template <class Tiling>
struct UnionEntries {
  const Tiling& tiling;
  int position;  ///< of the tile's first query

  __device__ int first_entry(int block) const { return block * tiling.entries_per_block(); }
  __device__ int end_entry(int block, int query) const {
    if constexpr (!Tiling::Rows::has_padding) return block + 1;
    return min((block + 1) * tiling.entries_per_block(), (position + query) / tiling.keys_per_entry() + 1);
  }
  __device__ int bit(int query) const { return query / tiling.rows().queries(); }
};

/// `Problem`: AttentionProblem or what extends it.
template <class Problem, int Heads>
struct SelectedWork {
  Problem problem;
  SelectedTiling<Heads> tiling;
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

/// In shared memory behind the layout: the unions, the locations of their entries, and the arrivals of the tiles' keys
/// and values. Of a location of the pool, -1 - location is a slot times the entries per block plus an entry.
template <int Heads>
struct UnionBuffers {
  using Union = typename SelectedTiling<Heads>::Union;
  static constexpr bool replaces_blocks = Heads == any_heads;  ///< locations replace the blocks, which nobody reads

  unsigned char* memory;
  int words;
  int capacity;

  __host__ __device__ static int locations_bytes(int capacity) {
    return replaces_blocks ? 0 : (capacity * 4 + 15) / 16 * 16;
  }
  __host__ __device__ static int arrivals_bytes(int capacity) { return (capacity + 15) / 16 * 16; }
  __host__ __device__ static int buffer_bytes(int capacity) {
    return sizeof(SelectedItem) + Union::list_bytes(capacity) + locations_bytes(capacity) +
           2 * arrivals_bytes(capacity);
  }
  __host__ __device__ static int bytes(int lists, int words, int capacity) {
    return lists * buffer_bytes(capacity) + Union::bitmap_bytes(words);
  }

  /// The item of which list i is the union.
  __device__ SelectedItem& item(int i) const {
    return *reinterpret_cast<SelectedItem*>(memory + i * buffer_bytes(capacity));
  }
  __device__ Union list(int lists, int i) const {
    return {memory + i * buffer_bytes(capacity) + sizeof(SelectedItem), capacity,
            memory + lists * buffer_bytes(capacity), words};
  }
  __device__ BlockLocation* locations(int lists, int i) const {
    if constexpr (replaces_blocks) return list(lists, i).blocks;
    return reinterpret_cast<BlockLocation*>(behind_list(i));
  }
  __device__ ArrivalWord* arrivals(ArrivalsOf kind, int i) const {
    return reinterpret_cast<ArrivalWord*>(behind_list(i)) + locations_bytes(capacity) +
           (kind == ArrivalsOf::keys ? 0 : arrivals_bytes(capacity));
  }

 private:
  __device__ unsigned char* behind_list(int i) const {
    return memory + i * buffer_bytes(capacity) + sizeof(SelectedItem) + Union::list_bytes(capacity);
  }
};

/// The builder warps: build the union of each tile, one ahead of the consumers.
template <class Shape, class Problem, class Shared>
__device__ __forceinline__ void build_unions(const SelectedWork<Problem, Shape::heads_per_group>& a,
                                             const UnionBuffers<Shape::heads_per_group>& buffers, const Shared& smem) {
  __shared__ int next;
  const int thread = threadIdx.x - (Shape::threads - Shape::builders);
  const auto wait_for_all = [] { ptx::named_barrier(1, Shape::builders); };
  RingPosition<Shape::lists> ring;
  int item = a.work.first();
#pragma unroll 1
  for (; item < a.work.count(); ring.advance()) {
    const SelectedItem now = a.item(item);
    const QueryTile& tile = now.tile;
    const auto list = buffers.list(Shape::lists, ring.stage);
    BlockLocation* const locations = buffers.locations(Shape::lists, ring.stage);
    ptx::mbarrier_wait(smem.list_empty(ring.stage), ring.phase ^ 1);
    if (thread == 0) {
      buffers.item(ring.stage) = now;
      next = a.work.next();  // read by no thread any more: all have met in build()
    }
    list.template build<Shape::builders>(
        thread, wait_for_all, a.selected + (tile.row * a.problem.num_kv_heads + now.group) * a.select_count, tile.rows,
        a.select_count, static_cast<std::int64_t>(a.problem.num_kv_heads) * a.select_count,
        min(a.words, (now.position + tile.rows - 1) / a.tiling.keys_per_entry() / 32 + 1),
        UnionEntries<SelectedTiling<Shape::heads_per_group>>{a.tiling, now.position});
    const BlockLocation* const table =
        a.table + a.problem.segments[tile.segment].block * a.problem.num_kv_heads + now.group;
    for (int i = thread; i < *list.count; i += Shape::builders) {
      const int entry = list.blocks[i], per_block = a.tiling.entries_per_block();
      const BlockLocation at = table[static_cast<std::int64_t>(entry / per_block) * a.problem.num_kv_heads];
      const int part = entry % per_block;
      locations[i] = at >= 0 ? at + part * tokens_per_block : -1 - ((-1 - at) * per_block + part);
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

/// How a launch of the kernels of the selected branch divides its work.
struct SelectedPlan {
  int row = -1;          ///< of the table of shapes, -1 where none serves
  int queries = 0;       ///< of a tile
  int per_warp = 0;      ///< queries of a consumer warp
  bool is_full = false;  ///< the tile has as many queries as the warps have rows for
  int words = 0;         ///< of a union
  int capacity = 0;
  std::size_t shared_bytes = 0;
};

template <class Shape, class Problem, class Stage>
SelectedWork<Problem, Shape::heads_per_group> selected_work(const Stage& a, const Problem& problem,
                                                            const WorkList& work, const SelectedPlan& plan) {
  return {problem,
          SelectedTiling<Shape::heads_per_group>(*a.config, plan.per_warp),
          work,
          a.table,
          a.selected,
          static_cast<int>(a.group_begin),
          static_cast<int>(a.config->select_count),
          plan.words,
          plan.capacity};
}

}  // namespace cpnsa::cuda::sm90
