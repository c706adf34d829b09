#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/cpu/query_tile.hpp"

namespace cpnsa::cpu {

/// The blocks that the queries of a tile selected, ascending, each with the queries that selected it. Neighbouring
/// queries select mostly the same blocks, so a block is loaded once for all of them.
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

  /// Moves to the next block in ascending order; false when there are no more.
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

  std::int64_t block() const { return block_; }  ///< index in its document
  const std::vector<std::int64_t>& queries() const {
    return queries_;
  }  ///< the queries of the tile that selected block()

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

/// Rows of the keys and values of one (block, KV head) pair, or of their gradients.
template <class T>
struct BlockRows {
  Strided<T> k;
  Strided<T> v;
};

/// The location of block `block` of the tile's document for the tile's KV head.
inline BlockLocation locate(const BlockLocation* table, const Config& config, const QueryTile& tile,
                            std::int64_t block) {
  return table[(tile.segment->block + block) * config.num_kv_heads + tile.group];
}

/// The rows from `row` on of KV head `group` in the rank's own tensors k [rows, G, d_qk] and v [rows, G, d_v].
template <class T>
BlockRows<T> own_rows(std::int64_t row, const Config& config, std::int64_t group, T* k, T* v) {
  return {rows_of_group(k, config, group, config.head_dim_qk).from(row),
          rows_of_group(v, config, group, config.head_dim_v).from(row)};
}

/// The rows of a slot of pool [slots][m d_qk + m d_v].
template <class T>
BlockRows<T> slot_rows(std::int64_t slot, const Config& config, T* pool) {
  const std::int64_t d_qk = config.head_dim_qk, d_v = config.head_dim_v, m = config.select_block;
  T* const keys = pool + slot * m * (d_qk + d_v);
  return {{keys, d_qk}, {keys + m * d_qk, d_v}};
}

/// The rows of a block at `location`, for KV head `group`.
template <class T>
BlockRows<T> rows_at(BlockLocation location, const Config& config, std::int64_t group, T* k, T* v, T* pool) {
  return location >= 0 ? own_rows(location, config, group, k, v)
                       : slot_rows(-1 - static_cast<std::int64_t>(location), config, pool);
}

/// Tokens [0, end) that the query at `position` sees of the block whose first token is at `block_position`.
inline ColumnRange tokens_seen(const Config& config, std::int64_t block_position, std::int64_t position) {
  return {0, std::min(config.select_block, position + 1 - block_position)};
}

}  // namespace cpnsa::cpu
