#pragma once

// Every layer shape that Hopper's kernels serve, with the tile sizes of each kernel. The dispatch (serves() in
// run_op.hpp), the kernels' templates, the segment schedule and the tests read this table; adding a shape adds a row.
// Plain C++.

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <vector>

#include "cpnsa/config.hpp"

namespace cpnsa::cuda::sm90 {

/// In Shape::heads_per_group: the kernels learn the number of query heads per KV head when they run, and pad their
/// tiles where it does not divide them.
inline constexpr int any_heads = 0;

/// A tile's rows are (query, head) pairs of one KV head. `stages` counts ring stages in shared memory;
/// `consumer_registers` are those of a thread of a consumer warpgroup.
struct Shape {
  int d_qk;  ///< of the tiles; smaller head dimensions are padded with zeros, by the copies into shared memory
  int d_v;
  int heads_per_group;
  struct Attention {
    int warpgroups;  ///< consumers, of 64 rows each
    int keys;
    int consumer_registers;
  } attention;  ///< forward of the compressed and the window branch
  struct QueryGradients {
    int warpgroups;
    int keys;
    int stages;
    int consumer_registers;
  } query_gradients;  ///< dQ of the compressed and the window branch
  struct KeyGradients {
    int rows;       ///< per stage
    int keys;       ///< per tile of the compressed and the window branch: 64 for each of two warpgroups, or 64 for both
  } key_gradients;  ///< dK and dV of every branch
  struct SelectBlocks {
    int warpgroups;  ///< consumers, of 128 rows each
    int stages;
    int consumer_registers;
  } select_blocks;
  struct SelectedAttention {
    int warps;  ///< consumers, of 16 rows each
    int key_stages;
    int value_stages;
  } selected_attention;  ///< forward of the selected branch
  struct SelectedQueryGradients {
    int warps;
    int stages;
    bool queries_in_registers;  ///< false where q does not fit in registers beside its gradient
  } selected_query_gradients;   ///< dQ of the selected branch
};

namespace tile_sizes {

inline constexpr Shape dim_64{.d_qk = 64,
                              .d_v = 64,
                              .heads_per_group = 16,
                              .attention = {.warpgroups = 3, .keys = 80, .consumer_registers = 152},
                              .query_gradients = {.warpgroups = 3, .keys = 64, .stages = 6, .consumer_registers = 160},
                              .key_gradients = {.rows = 64, .keys = 128},
                              .select_blocks = {.warpgroups = 4, .stages = 3, .consumer_registers = 112},
                              .selected_attention = {.warps = 12, .key_stages = 8, .value_stages = 8},
                              .selected_query_gradients = {.warps = 8, .stages = 12, .queries_in_registers = true}};
inline constexpr Shape dim_128{.d_qk = 128,
                               .d_v = 128,
                               .heads_per_group = 16,
                               .attention = {.warpgroups = 3, .keys = 80, .consumer_registers = 152},
                               .query_gradients = {.warpgroups = 3, .keys = 64, .stages = 3, .consumer_registers = 160},
                               .key_gradients = {.rows = 64, .keys = 128},
                               .select_blocks = {.warpgroups = 4, .stages = 3, .consumer_registers = 112},
                               .selected_attention = {.warps = 12, .key_stages = 5, .value_stages = 5},
                               .selected_query_gradients = {.warps = 8, .stages = 6, .queries_in_registers = true}};
inline constexpr Shape dim_192{.d_qk = 192,
                               .d_v = 128,
                               .heads_per_group = 16,
                               .attention = {.warpgroups = 3, .keys = 80, .consumer_registers = 152},
                               .query_gradients = {.warpgroups = 2, .keys = 64, .stages = 3, .consumer_registers = 240},
                               .key_gradients = {.rows = 32, .keys = 128},
                               .select_blocks = {.warpgroups = 3, .stages = 2, .consumer_registers = 152},
                               .selected_attention = {.warps = 12, .key_stages = 3, .value_stages = 4},
                               .selected_query_gradients = {.warps = 8, .stages = 4, .queries_in_registers = false}};

/// Without kernels of the selected branch.
inline constexpr Shape dim_256{.d_qk = 256,
                               .d_v = 256,
                               .heads_per_group = any_heads,
                               .attention = {.warpgroups = 2, .keys = 64, .consumer_registers = 232},
                               .query_gradients = {.warpgroups = 2, .keys = 32, .stages = 3, .consumer_registers = 232},
                               .key_gradients = {.rows = 32, .keys = 64},
                               .select_blocks = {},
                               .selected_attention = {},
                               .selected_query_gradients = {}};

/// The same tiles for any number of heads, whose producer threads need more registers.
constexpr Shape with_any_heads(Shape shape) {
  shape.heads_per_group = any_heads;
  shape.query_gradients.consumer_registers = std::min(shape.query_gradients.consumer_registers, 232);
  return shape;
}

}  // namespace tile_sizes

/// A layer runs on the first row that serves it: of its own heads and head dimensions, else of any number of heads and
/// head dimensions at least as large.
inline constexpr Shape shapes[] = {
    tile_sizes::dim_64,
    tile_sizes::dim_128,
    tile_sizes::dim_192,
    tile_sizes::with_any_heads(tile_sizes::dim_64),
    tile_sizes::with_any_heads(tile_sizes::dim_128),
    tile_sizes::with_any_heads(tile_sizes::dim_192),
    tile_sizes::dim_256,
};

/// Keys per tile of the key-outer backward kernel of the selected branch, where a tile is a whole block.
inline constexpr int tokens_per_block = 64;

/// True for a shape that has kernels of every branch, not of the compressed and the window branch alone.
constexpr bool has_selection(const Shape& shape) {
  return shape.selected_attention.warps > 0;
}

/// The index of a shape in the table, -1 for a shape that is not in it.
constexpr int index_of(std::int64_t d_qk, std::int64_t d_v, std::int64_t heads_per_group) {
  for (int i = 0; i < static_cast<int>(std::size(shapes)); ++i)
    if (shapes[i].d_qk == d_qk && shapes[i].d_v == d_v && shapes[i].heads_per_group == heads_per_group) return i;
  return -1;
}

/// The index of the row with the layer's own heads and head dimensions, -1 where there is none.
inline int index_of(const Config& config) {
  return index_of(config.head_dim_qk, config.head_dim_v, config.heads_per_group());
}

/// The index of the first row for any number of heads that is as large as the layer, of those with kernels of every
/// branch unless it `is_dense`; -1 where there is none.
inline int any_heads_row(const Config& config, bool is_dense = false) {
  for (int i = 0; i < static_cast<int>(std::size(shapes)); ++i)
    if (shapes[i].heads_per_group == any_heads && shapes[i].d_qk >= config.head_dim_qk &&
        shapes[i].d_v >= config.head_dim_v && (is_dense || has_selection(shapes[i])))
      return i;
  return -1;
}

/// The index of the row that serves every branch of the layer, -1 where none does.
inline int serving_row(const Config& config) {
  const int own = index_of(config);
  return own >= 0 ? own : any_heads_row(config);
}

/// The index of the row that serves the compressed and the window branch of the layer, -1 where none does.
inline int dense_row(const Config& config) {
  const int own = index_of(config);
  return own >= 0 ? own : any_heads_row(config, true);
}

/// Throws UnsupportedError, naming the layer's shape.
[[noreturn]] void refuse_shape(const Config& config);

/// The row of the table for a kernel's template arguments; a shape that is not in the table does not compile.
template <int Dqk, int Dv, int Heads>
struct TableRow {
  static_assert(index_of(Dqk, Dv, Heads) >= 0, "sm90/shapes.hpp has no such shape");
  static constexpr Shape shape = shapes[index_of(Dqk, Dv, Heads)];
};

/// How the query heads of a KV head lie in groups of `rows` rows: in `parts` groups where they are more, as many heads
/// in each but the last; else the heads of `queries` queries in one group.
struct HeadSplit {
  int parts;    ///< groups of rows that hold one query
  int heads;    ///< of one query in a group of rows
  int queries;  ///< in a group of rows

  constexpr HeadSplit(int rows, int heads_per_group)
      : parts((heads_per_group + rows - 1) / rows),
        heads((heads_per_group + parts - 1) / parts),
        queries(rows / heads) {}
  /// Queries of a tile of `groups` groups of rows, 0 where they do not hold the heads of one.
  constexpr int tile_queries(int groups) const { return groups / parts * (parts > 1 ? 1 : queries); }
};

/// Queries of the tiles that a kernel of a shape walks, from the heads of the layer. Kernels of 64 rows a warpgroup
/// have at most 64 heads of a query in a tile, and walk a tile once for each part of the heads.
constexpr int attention_queries(const Shape& shape, int heads) {
  return shape.attention.warpgroups * HeadSplit(64, heads).queries;
}
constexpr int query_gradient_queries(const Shape& shape, int heads) {
  return shape.query_gradients.warpgroups * HeadSplit(64, heads).queries;
}
constexpr int select_blocks_queries(const Shape& shape, int heads) {
  return shape.select_blocks.warpgroups * 8 * HeadSplit(16, heads).queries;
}

/// Sizes of the query tiles that the kernels of a shape walk, in queries, but for those of the selected branch, which
/// depend on the documents (run_op.hpp); sizes may repeat.
inline std::vector<int> query_tiles(const Shape& shape, std::int64_t heads_per_group) {
  const int heads = static_cast<int>(heads_per_group);
  std::vector<int> tiles{attention_queries(shape, heads), query_gradient_queries(shape, heads)};
  if (has_selection(shape)) tiles.push_back(select_blocks_queries(shape, heads));
  return tiles;
}

}  // namespace cpnsa::cuda::sm90
