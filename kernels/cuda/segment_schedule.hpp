#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "cpnsa/stages.hpp"
#include "kernels/cuda/device_array.hpp"

namespace cpnsa::cuda {

/// Consecutive queries of one segment.
struct QueryTile {
  std::int64_t row;      ///< first local row
  std::int32_t rows;     ///< at least 1, less than the tile size at a segment's end
  std::int32_t segment;  ///< index of the segment
};

/// A rank's segments in the device's memory, and the tiles that kernels walk them in: none crosses the end of a
/// segment, and a segment's tiles start at its first row. Tiles are in the order of local rows.
class CudaSegmentSchedule final : public SegmentSchedule {
 public:
  static constexpr std::array<int, 5> tile_sizes{8, 16, 32, 64, 128};

  explicit CudaSegmentSchedule(std::span<const Segment> segments);

  const Segment* device_segments() const { return device_segments_.data(); }

  /// The tiles of `tile_rows` queries, one of tile_sizes.
  ListView<QueryTile> tiles(int tile_rows) const;

 private:
  DeviceArray<Segment> device_segments_;
  std::array<std::vector<QueryTile>, tile_sizes.size()> host_tiles_;
  std::array<DeviceArray<QueryTile>, tile_sizes.size()> device_tiles_;
};

/// The schedule as this device made it; ArgumentError when another device did.
const CudaSegmentSchedule& cuda_schedule(const SegmentSchedule* schedule);

}  // namespace cpnsa::cuda
