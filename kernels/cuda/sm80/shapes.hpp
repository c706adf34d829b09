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

/// Queries of a tile of rows_per_tile rows.
inline int queries_per_tile(const Config& config) {
  return std::max(1, rows_per_tile / static_cast<int>(config.heads_per_group()));
}

/// Sizes of the query tiles that the kernels walk, in queries.
inline std::vector<int> query_tiles(const Config& config) {
  return {queries_per_tile(config), needs_tile_queries};
}

}  // namespace cpnsa::cuda::sm80
