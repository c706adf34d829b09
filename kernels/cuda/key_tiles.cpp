#include "kernels/cuda/key_tiles.hpp"

#include <algorithm>
#include <map>

namespace cpnsa::cuda {

WindowKeyTiles window_key_tiles(std::span<const Segment> segments) {
  WindowKeyTiles result;
  const auto add = [&](std::int64_t row, std::int64_t rows, bool halo, std::span<const std::int32_t> seen_by) {
    const auto begin = static_cast<std::int32_t>(result.segments.size());
    result.segments.insert(result.segments.end(), seen_by.begin(), seen_by.end());
    result.tiles.push_back(
        {row, static_cast<std::int32_t>(rows), halo, begin, static_cast<std::int32_t>(result.segments.size())});
  };

  std::map<std::int64_t, std::vector<std::int32_t>> halo;  // tile of the halo -> segments
  std::int64_t halo_rows = 0;
  for (std::int32_t i = 0; i < static_cast<std::int32_t>(segments.size()); ++i) {
    const Segment& segment = segments[static_cast<std::size_t>(i)];
    for (std::int64_t row = 0; row < segment.rows; row += keys_per_tile)
      add(segment.row + row, std::min(keys_per_tile, segment.rows - row), false, {&i, 1});
    if (segment.halo_rows == 0) continue;
    const std::int64_t end = segment.halo_row + segment.halo_rows;
    for (std::int64_t tile = segment.halo_row / keys_per_tile; tile * keys_per_tile < end; ++tile)
      halo[tile].push_back(i);
    halo_rows = std::max(halo_rows, end);
  }
  for (const auto& [tile, seen_by] : halo) {
    const std::int64_t row = tile * keys_per_tile;
    add(row, std::min(keys_per_tile, halo_rows - row), true, seen_by);
  }
  return result;
}

}  // namespace cpnsa::cuda
