#include "kernels/cuda/schedule/segment_schedule.hpp"

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

CudaSegmentSchedule::CudaSegmentSchedule(std::span<const Segment> list, const Config& config, const TileSizes& sizes)
    : SegmentSchedule(list), device_segments_(list) {
  for (const Segment& segment : segments) end_position_ = std::max(end_position_, segment.position + segment.rows);
  for (const int queries : sizes.queries) {
    const auto same = [&](const Tiles& made) { return made.queries == queries; };
    if (std::any_of(tiles_.begin(), tiles_.end(), same)) continue;
    std::vector<QueryTile> host = tiles_of(segments, queries);
    DeviceArray<QueryTile> device(host);
    tiles_.push_back({queries, std::move(host), std::move(device)});
  }
  WindowKeyTiles window = cuda::window_key_tiles(segments, sizes.keys);
  window_key_segments_ = DeviceArray<std::int32_t>(window.segments);
  window_key_tiles_ = KeyTiles<WindowKeyTile>(std::move(window.tiles));
  SummaryKeyTiles summaries = cuda::summary_key_tiles(segments, config, sizes.keys);
  query_runs_ = DeviceArray<QueryRun>(summaries.runs);
  summary_slots_ = summaries.slots;
  summary_key_tiles_ = KeyTiles<SummaryKeyTile>(std::move(summaries.tiles));
}

ListView<QueryTile> CudaSegmentSchedule::tiles(int queries) const {
  for (const Tiles& made : tiles_)
    if (made.queries == queries)
      return {made.host.data(), made.device.data(), static_cast<std::int64_t>(made.host.size())};
  throw ArgumentError(fmt::format(
      "segment schedule: found tiles of {} queries, expected one of the sizes that it was made for", queries));
}

const CudaSegmentSchedule& cuda_schedule(const SegmentSchedule* schedule) {
  const auto* own = dynamic_cast<const CudaSegmentSchedule*>(schedule);
  if (!own) throw ArgumentError("segment schedule: found another device's, expected one made by cuda's schedule()");
  return *own;
}

}  // namespace cpnsa::cuda
