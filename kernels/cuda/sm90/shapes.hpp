#pragma once

// Every layer shape that Hopper's kernels serve, with the tile sizes of each kernel. The dispatch (serves() in
// run_op.hpp), the kernels' templates, the segment schedule and the tests read this table; adding a shape adds a row.
// Plain C++.

#include <cstdint>
#include <iterator>
#include <vector>

#include "cpnsa/config.hpp"

namespace cpnsa::cuda::sm90 {

/// `queries` counts tokens per tile, each with the heads_per_group query heads of one KV head; `stages` counts ring
/// stages in shared memory; `consumer_registers` are those of a thread of a consumer warpgroup.
struct Shape {
  int d_qk;
  int d_v;
  int heads_per_group;
  struct Attention {
    int queries;
    int keys;
  } attention;  ///< forward of the compressed and the window branch
  struct QueryGradients {
    int queries;
    int keys;
    int stages;
    int consumer_registers;
  } query_gradients;  ///< dQ of the compressed and the window branch
  struct KeyGradients {
    int queries;
  } key_gradients;  ///< dK and dV of every branch: queries per stage
  struct SelectBlocks {
    int queries;
    int stages;
    int consumer_registers;
  } select_blocks;
  struct SelectedAttention {
    int queries;
    int key_stages;
    int value_stages;
  } selected_attention;  ///< forward of the selected branch
  struct SelectedQueryGradients {
    int queries;
    int stages;
    bool queries_in_registers;  ///< false where q does not fit in registers beside its gradient
  } selected_query_gradients;   ///< dQ of the selected branch
};

inline constexpr Shape shapes[] = {
    {.d_qk = 64,
     .d_v = 64,
     .heads_per_group = 16,
     .attention = {.queries = 12, .keys = 80},
     .query_gradients = {.queries = 12, .keys = 64, .stages = 6, .consumer_registers = 160},
     .key_gradients = {.queries = 4},
     .select_blocks = {.queries = 32, .stages = 3, .consumer_registers = 112},
     .selected_attention = {.queries = 12, .key_stages = 8, .value_stages = 8},
     .selected_query_gradients = {.queries = 8, .stages = 12, .queries_in_registers = true}},
    {.d_qk = 128,
     .d_v = 128,
     .heads_per_group = 16,
     .attention = {.queries = 12, .keys = 80},
     .query_gradients = {.queries = 12, .keys = 64, .stages = 3, .consumer_registers = 160},
     .key_gradients = {.queries = 4},
     .select_blocks = {.queries = 32, .stages = 3, .consumer_registers = 112},
     .selected_attention = {.queries = 12, .key_stages = 5, .value_stages = 5},
     .selected_query_gradients = {.queries = 8, .stages = 6, .queries_in_registers = true}},
    {.d_qk = 192,
     .d_v = 128,
     .heads_per_group = 16,
     .attention = {.queries = 12, .keys = 80},
     .query_gradients = {.queries = 8, .keys = 64, .stages = 3, .consumer_registers = 240},
     .key_gradients = {.queries = 2},
     .select_blocks = {.queries = 24, .stages = 2, .consumer_registers = 152},
     .selected_attention = {.queries = 12, .key_stages = 3, .value_stages = 4},
     .selected_query_gradients = {.queries = 8, .stages = 4, .queries_in_registers = false}},
};

/// Keys per tile of the key-outer backward kernels: of the compressed and the window branch, and of the selected
/// branch, where a tile is a whole block.
inline constexpr int keys_per_tile = 128;
inline constexpr int tokens_per_block = 64;

/// The index of a shape in the table, -1 for a shape that is not in it.
constexpr int index_of(std::int64_t d_qk, std::int64_t d_v, std::int64_t heads_per_group) {
  for (int i = 0; i < static_cast<int>(std::size(shapes)); ++i)
    if (shapes[i].d_qk == d_qk && shapes[i].d_v == d_v && shapes[i].heads_per_group == heads_per_group) return i;
  return -1;
}

inline int index_of(const Config& config) {
  return index_of(config.head_dim_qk, config.head_dim_v, config.heads_per_group());
}

/// Throws UnsupportedError, naming the layer's shape.
[[noreturn]] void refuse_shape(const Config& config);

/// The row of the table for a kernel's template arguments; a shape that is not in the table does not compile.
template <int Dqk, int Dv, int Heads>
struct TableRow {
  static_assert(index_of(Dqk, Dv, Heads) >= 0, "sm90/shapes.hpp has no such shape");
  static constexpr Shape shape = shapes[index_of(Dqk, Dv, Heads)];
};

/// Sizes of the query tiles that the kernels of a shape walk, in queries; sizes may repeat.
inline std::vector<int> query_tiles(const Shape& shape) {
  return {shape.attention.queries, shape.query_gradients.queries, shape.select_blocks.queries,
          shape.selected_attention.queries, shape.selected_query_gradients.queries};
}

}  // namespace cpnsa::cuda::sm90
