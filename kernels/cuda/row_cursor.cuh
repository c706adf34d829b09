#pragma once

#include <cstdint>

namespace cpnsa::cuda {

/// Walks the (query, head) rows of consecutive queries in tiles, whatever the number of heads: a tile may begin and end
/// within a query's heads.
struct RowCursor {
  int heads;               ///< R
  int head = 0;            ///< of the tile's first row
  std::int64_t query = 0;  ///< likewise
  std::int64_t end = 0;    ///< queries

  __device__ explicit RowCursor(int heads_per_group) : heads(heads_per_group) {}

  __device__ void start(std::int64_t first, std::int64_t last) {
    head = 0;
    query = first;
    end = last;
  }
  __device__ void advance(int rows) {
    query += (head + rows) / heads;
    head = (head + rows) % heads;
  }
  __device__ bool done() const { return query >= end; }

  __device__ std::int64_t query_of(int index) const { return query + (head + index) / heads; }
  __device__ int head_of(int index) const { return (head + index) % heads; }
};

}  // namespace cpnsa::cuda
