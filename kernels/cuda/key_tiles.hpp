#pragma once

// Which tiles of 64 keys the key-outer kernels of the backward take, each with what of the rank's queries sees it. A
// key's gradient is the work of one thread block at a time, so that its sum has one order.

#include <cstdint>
#include <span>
#include <vector>

#include "cpnsa/stages.hpp"

namespace cpnsa::cuda {

inline constexpr std::int64_t keys_per_tile = 64;

/// Consecutive rows of the rank's own tokens or of its window halo. Segments can share rows of the halo, though never
/// own ones: a row's tile lists all segments that see it through their windows.
struct WindowKeyTile {
  std::int64_t row;
  std::int32_t rows;
  std::int32_t halo;           ///< whether `row` is one of the halo
  std::int32_t segment_begin;  ///< in WindowKeyTiles::segments
  std::int32_t segment_end;
};

struct WindowKeyTiles {
  std::vector<WindowKeyTile> tiles;
  std::vector<std::int32_t> segments;  ///< indices of segments, ascending for every tile
};

WindowKeyTiles window_key_tiles(std::span<const Segment> segments);

}  // namespace cpnsa::cuda
