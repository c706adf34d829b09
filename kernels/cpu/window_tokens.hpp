#pragma once

#include "kernels/cpu/panels.hpp"
#include "kernels/cpu/query_tile.hpp"

namespace cpnsa::cpu {

/// The rows of a run of tokens, in the halo or in the rank's own tensors.
struct TokenRows {
  bool halo;
  std::int64_t row;     ///< row of the first token
  ColumnRange columns;  ///< columns of the key tile that the run fills
};

/// Positions [begin, end) that the query at `position` sees through its window.
inline ColumnRange window_of(const Config& config, std::int64_t position) {
  return {std::max<std::int64_t>(0, position - config.window + 1), position + 1};
}

/// The columns of the key tile starting at position `tile_position` that hold the given positions.
inline ColumnRange columns_of(ColumnRange positions, std::int64_t tile_position) {
  return ColumnRange{positions.begin - tile_position, positions.end - tile_position} & ColumnRange{0, key_tile};
}

/// Calls function(TokenRows) once for the columns of a key tile whose tokens are in the segment's halo, if any, and
/// once for those whose tokens are in the segment, if any.
template <class Function>
void for_each_run_of_tokens(const Segment& segment, std::int64_t tile_position, ColumnRange columns,
                            Function&& function) {
  const std::int64_t own = segment.position - tile_position;  // column of the segment's first token
  const ColumnRange in_halo = columns & ColumnRange{0, own};
  if (!in_halo.empty())
    function(TokenRows{true, segment.halo_row + segment.halo_rows - (own - in_halo.begin), in_halo});
  const ColumnRange in_segment = columns & ColumnRange{own, key_tile};
  if (!in_segment.empty()) function(TokenRows{false, segment.row + in_segment.begin - own, in_segment});
}

}  // namespace cpnsa::cpu
