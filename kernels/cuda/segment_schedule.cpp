#include "kernels/cuda/segment_schedule.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "cpnsa/error.hpp"

namespace cpnsa::cuda {
namespace {

std::vector<QueryTile> tiles_of(const std::vector<Segment>& segments, int tile_rows) {
  std::vector<QueryTile> tiles;
  for (std::size_t i = 0; i < segments.size(); ++i) {
    const Segment& segment = segments[i];
    for (std::int64_t row = 0; row < segment.rows; row += tile_rows)
      tiles.push_back({segment.row + row,
                       static_cast<std::int32_t>(std::min<std::int64_t>(tile_rows, segment.rows - row)),
                       static_cast<std::int32_t>(i)});
  }
  return tiles;
}

}  // namespace

CudaSegmentSchedule::CudaSegmentSchedule(std::span<const Segment> list)
    : SegmentSchedule(list), device_segments_(list) {
  for (std::size_t i = 0; i < tile_sizes.size(); ++i) {
    host_tiles_[i] = tiles_of(segments, tile_sizes[i]);
    device_tiles_[i] = DeviceArray<QueryTile>(host_tiles_[i]);
  }
}

ListView<QueryTile> CudaSegmentSchedule::tiles(int tile_rows) const {
  const auto found = std::find(tile_sizes.begin(), tile_sizes.end(), tile_rows);
  if (found == tile_sizes.end())
    throw ArgumentError(
        fmt::format("segment schedule: found tiles of {} rows, expected one of the sizes that are kept", tile_rows));
  const auto i = static_cast<std::size_t>(found - tile_sizes.begin());
  return {host_tiles_[i].data(), device_tiles_[i].data(), static_cast<std::int64_t>(host_tiles_[i].size())};
}

const CudaSegmentSchedule& cuda_schedule(const SegmentSchedule* schedule) {
  const auto* own = dynamic_cast<const CudaSegmentSchedule*>(schedule);
  if (!own) throw ArgumentError("segment schedule: found another device's, expected one made by cuda's schedule()");
  return *own;
}

}  // namespace cpnsa::cuda
