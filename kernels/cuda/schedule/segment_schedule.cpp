#include "kernels/cuda/schedule/segment_schedule.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "cpnsa/error.hpp"
#include "kernels/cuda/sm90/stages.hpp"

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

int queries_of(const Config& config, int rows) {
  return std::max(1, rows / static_cast<int>(config.heads_per_group()));
}

CudaSegmentSchedule::CudaSegmentSchedule(std::span<const Segment> list, const Config& config)
    : SegmentSchedule(list), device_segments_(list) {
  for (const Segment& segment : segments) end_position_ = std::max(end_position_, segment.position + segment.rows);
  for (const int queries : {queries_of(config, 64), queries_of(config, 128), 12, 16, 24, 32}) {
    const auto same = [&](const Tiles& kept) { return kept.queries == queries; };
    if (std::any_of(tiles_.begin(), tiles_.end(), same)) continue;
    std::vector<QueryTile> host = tiles_of(segments, queries);
    DeviceArray<QueryTile> device(host);
    tiles_.push_back({queries, std::move(host), std::move(device)});
  }
  const std::int64_t keys = sm90::serves_attention(config) ? sm90::keys_per_tile : keys_per_tile;
  WindowKeyTiles window = cuda::window_key_tiles(segments, keys);
  window_key_segments_ = DeviceArray<std::int32_t>(window.segments);
  window_key_tiles_ = KeyTiles<WindowKeyTile>(std::move(window.tiles));
  SummaryKeyTiles summaries = cuda::summary_key_tiles(segments, config, keys);
  query_runs_ = DeviceArray<QueryRun>(summaries.runs);
  summary_places_ = summaries.places;
  summary_key_tiles_ = KeyTiles<SummaryKeyTile>(std::move(summaries.tiles));
}

ListView<QueryTile> CudaSegmentSchedule::tiles(int queries) const {
  for (const Tiles& kept : tiles_)
    if (kept.queries == queries)
      return {kept.host.data(), kept.device.data(), static_cast<std::int64_t>(kept.host.size())};
  throw ArgumentError(
      fmt::format("segment schedule: found tiles of {} queries, expected one of the sizes that are kept", queries));
}

const CudaSegmentSchedule& cuda_schedule(const SegmentSchedule* schedule) {
  const auto* own = dynamic_cast<const CudaSegmentSchedule*>(schedule);
  if (!own) throw ArgumentError("segment schedule: found another device's, expected one made by cuda's schedule()");
  return *own;
}

}  // namespace cpnsa::cuda
