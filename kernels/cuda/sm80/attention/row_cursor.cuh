#pragma once

namespace cpnsa::cuda::sm80 {

/// Walks the (query, head) rows of consecutive queries in tiles, for any number of heads: a tile may begin and end
/// within a query's heads. Queries are counted within a document, so 32 bits hold them.
struct RowCursor {
  int heads;      ///< R
  int head = 0;   ///< of the tile's first row
  int query = 0;  ///< of the tile's first row
  int end = 0;    ///< queries

  __device__ explicit RowCursor(int heads_per_group) : heads(heads_per_group) {}

  __device__ void start(int first, int last) {
    head = 0;
    query = first;
    end = last;
  }
  __device__ void advance(int rows) {
    query += (head + rows) / heads;
    head = (head + rows) % heads;
  }
  __device__ bool done() const { return query >= end; }

  __device__ int query_of(int index) const { return query + (head + index) / heads; }
  __device__ int head_of(int index) const { return (head + index) % heads; }
};

}  // namespace cpnsa::cuda::sm80
