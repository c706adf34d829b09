#pragma once

// A tile of queries: neighbouring queries of one segment with the R query heads of one group. They share tiles of keys.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpnsa/ops.hpp"
#include "kernels/cpu/buffer.hpp"
#include "kernels/cpu/panels.hpp"

namespace cpnsa::cpu {

/// Queries first, ..., first + count - 1 of a segment, and the query heads that read KV head `group`.
struct QueryTile {
  const Segment* segment;
  std::int64_t group;
  std::int64_t first;
  std::int64_t count;

  std::int64_t row(std::int64_t query) const { return segment->row + first + query; }
  std::int64_t position(std::int64_t query) const { return segment->position + first + query; }
};

/// Number of queries in a tile of about `rows` (query, query head) rows.
inline std::int64_t queries_per_tile(const Config& config, std::int64_t rows) {
  return std::max<std::int64_t>(1, rows / config.heads_per_group());
}

/// Calls function(QueryTile) for all queries of KV heads [groups.begin, groups.end), one KV head after another.
template <class Function>
void for_each_query_tile(const SegmentSchedule& schedule, ColumnRange groups, std::int64_t queries,
                         Function&& function) {
  for (std::int64_t group = groups.begin; group < groups.end; ++group)
    for (const Segment& segment : schedule.segments)
      for (std::int64_t first = 0; first < segment.rows; first += queries)
        function(QueryTile{&segment, group, first, std::min(queries, segment.rows - first)});
}

/// The part of a tensor [rows, H, dim] that belongs to the group's query heads: row i is the [R, dim] of local row i.
template <class T>
Strided<T> heads_of_group(T* tensor, const Config& config, std::int64_t group, std::int64_t dim) {
  return {tensor + group * config.heads_per_group() * dim, config.num_q_heads * dim};
}

/// The part of a tensor [rows, G, dim] that belongs to KV head `group`: row i is the [dim] of row i.
template <class T>
Strided<T> rows_of_group(T* tensor, const Config& config, std::int64_t group, std::int64_t dim) {
  return {tensor + group * dim, config.num_kv_heads * dim};
}

/// destination [(query, head of the group), stride] = the tile's part of `tensor` [rows, H, dim], widened, times
/// factor(row of the destination). Returns whether every product is finite.
template <class T, class Factor>
bool load_scaled_rows(const Config& config, const QueryTile& tile, const T* tensor, std::int64_t dim, Factor&& factor,
                      Arithmetic<T>* destination, std::int64_t stride) {
  const std::int64_t heads_per_group = config.heads_per_group();
  const auto source = heads_of_group(tensor, config, tile.group, dim);
  bool finite = true;
  for (std::int64_t i = 0; i < tile.count; ++i)
    for (std::int64_t head = 0; head < heads_per_group; ++head) {
      const std::int64_t row = i * heads_per_group + head;
      finite &= widen_row(source.row(tile.row(i)) + head * dim, dim, destination + row * stride,
                          static_cast<Arithmetic<T>>(factor(row)));
    }
  return finite;
}

/// load_scaled_rows() of q [rows, H, d_qk] with the softmax scale as the factor.
template <class T>
bool load_queries(const Config& config, const QueryTile& tile, const T* q, Arithmetic<T>* destination,
                  std::int64_t stride) {
  const double scale = config.scale();
  return load_scaled_rows(
      config, tile, q, config.head_dim_qk, [scale](std::int64_t) { return scale; }, destination, stride);
}

/// Number of summaries that the token at `position` of its document sees: summaries 0, ..., the result - 1.
inline std::int64_t visible_summaries(const Config& config, std::int64_t position) {
  const std::int64_t past = position + 1 - config.compress_block;
  return past < 0 ? 0 : past / config.compress_stride + 1;
}

/// A query of a tile and the columns of a key tile that it sees.
struct VisibleKeys {
  std::int64_t query;
  ColumnRange columns;
};

/// visible = the queries of the tile for which columns_seen(position of the query) is not empty, with these columns.
template <class ColumnsSeen>
void list_visible(const QueryTile& tile, ColumnsSeen&& columns_seen, std::vector<VisibleKeys>& visible) {
  visible.clear();
  for (std::int64_t query = 0; query < tile.count; ++query) {
    const ColumnRange columns = columns_seen(tile.position(query));
    if (!columns.empty()) visible.push_back({query, columns});
  }
}

}  // namespace cpnsa::cpu
