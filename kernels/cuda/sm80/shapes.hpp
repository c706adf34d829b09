#pragma once

// Tile sizes of the kernels for every GPU. Plain C++.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpnsa/config.hpp"

namespace cpnsa::cuda::sm80 {

inline constexpr int rows_per_tile = 64;       ///< (query, head) rows of one KV head in a query tile
inline constexpr int keys_per_tile = 64;       ///< keys per tile of the key-outer backward kernels
inline constexpr int needs_tile_queries = 16;  ///< queries per tile of mark_needs
inline constexpr int picks_per_tile = 1024;    ///< blocks that its queries select, at most: they are in shared memory

/// Queries of a tile of rows_per_tile rows.
inline int queries_per_tile(const Config& config) {
  const std::int64_t by_rows = rows_per_tile / config.heads_per_group(),
                     by_picks = picks_per_tile / config.select_count;
  return static_cast<int>(std::max<std::int64_t>(1, std::min(by_rows, by_picks)));
}

/// Slices of a KV head's query heads, of at most rows_per_tile heads each: a tile has the heads of one.
constexpr int num_head_slices(std::int64_t heads_per_group) {
  return static_cast<int>((heads_per_group + rows_per_tile - 1) / rows_per_tile);
}

/// Sizes of the query tiles that the kernels walk, in queries.
inline std::vector<int> query_tiles(const Config& config) {
  return {queries_per_tile(config), needs_tile_queries};
}

}  // namespace cpnsa::cuda::sm80
