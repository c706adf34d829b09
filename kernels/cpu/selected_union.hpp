#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/cpu/query_tile.hpp"

namespace cpnsa::cpu {

/// The blocks that the queries of a tile selected, each with the queries that did: neighbouring queries select much
/// the same blocks, so a block is loaded once for all of them.
class SelectedUnion {
 public:
  /// selected [rows, G, n]
  SelectedUnion(const Config& config, const QueryTile& tile, const std::int32_t* selected)
      : count_(config.select_count) {
    for (std::int64_t i = 0; i < tile.count; ++i) {
      const std::int32_t* picks = selected + (tile.row(i) * config.num_kv_heads + tile.group) * count_;
      cursors_.push_back({picks, picks + count_});
      skip_padding(cursors_.back());
    }
  }

  /// Moves on to the next block, in each query's own order; false when there are no more.
  bool next() {
    block_ = std::numeric_limits<std::int32_t>::max();
    for (const Cursor& cursor : cursors_)
      if (cursor.at != cursor.end) block_ = std::min(block_, *cursor.at);
    queries_.clear();
    for (std::size_t i = 0; i < cursors_.size(); ++i) {
      Cursor& cursor = cursors_[i];
      if (cursor.at == cursor.end || *cursor.at != block_) continue;
      queries_.push_back(static_cast<std::int64_t>(i));
      ++cursor.at;
      skip_padding(cursor);
    }
    return !queries_.empty();
  }

  std::int64_t block() const { return block_; }  ///< in its document
  const std::vector<std::int64_t>& queries() const { return queries_; }

 private:
  struct Cursor {
    const std::int32_t* at;
    const std::int32_t* end;
  };

  static void skip_padding(Cursor& cursor) {
    while (cursor.at != cursor.end && *cursor.at < 0) ++cursor.at;
  }

  std::int64_t count_;
  std::int32_t block_ = 0;
  std::vector<Cursor> cursors_;
  std::vector<std::int64_t> queries_;
};

/// Keys and values of one head of a block, or their gradients, in the rank's own tensors or in a pool.
template <class T>
struct BlockRows {
  Strided<T> k;
  Strided<T> v;
};

/// What the table says of (block of the segment's document, head).
inline BlockLocation locate(const BlockLocation* table, const Config& config, const QueryTile& tile,
                            std::int64_t block) {
  return table[(tile.segment->block + block) * config.num_kv_heads + tile.group];
}

/// k [rows, G, d_qk], v [rows, G, d_v], pool [slots][m d_qk + m d_v]
template <class T>
BlockRows<T> rows_at(BlockLocation location, const Config& config, std::int64_t head, T* k, T* v, T* pool) {
  const std::int64_t d_qk = config.head_dim_qk, d_v = config.head_dim_v, m = config.select_block;
  if (location >= 0)
    return {rows_of_head(k, config, head, d_qk).from(location), rows_of_head(v, config, head, d_v).from(location)};
  T* const slot = pool + (-1 - static_cast<std::int64_t>(location)) * m * (d_qk + d_v);
  return {{slot, d_qk}, {slot + m * d_qk, d_v}};
}

/// Tokens [0, end) of the block starting at position `block_position` that the query at `position` sees.
inline ColumnRange tokens_seen(const Config& config, std::int64_t block_position, std::int64_t position) {
  return {0, std::min(config.select_block, position + 1 - block_position)};
}

}  // namespace cpnsa::cpu
