#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "cpnsa/ops.hpp"
#include "kernels/cuda/common/device_array.hpp"
#include "kernels/cuda/schedule/key_tiles.hpp"

namespace cpnsa::cuda {

/// Consecutive queries of one segment.
struct QueryTile {
  std::int64_t row;      ///< first local row
  std::int32_t rows;     ///< at least 1, less than the tile size at a segment's end
  std::int32_t segment;  ///< index of the segment
};

/// Sizes of the tiles that the kernels of a configuration walk.
struct TileSizes {
  std::vector<int> queries;  ///< queries per query tile; sizes may repeat
  std::int64_t keys;         ///< keys per tile of the key-outer backward of the compressed and the window branch
};

/// A rank's segments in the device's memory, and the tiles that kernels walk them in: none crosses the end of a
/// segment, and a segment's tiles start at its first row. Tiles are in the order of local rows.
class CudaSegmentSchedule final : public SegmentSchedule {
 public:
  CudaSegmentSchedule(std::span<const Segment> segments, const Config& config, const TileSizes& sizes);

  const Segment* device_segments() const { return device_segments_.data(); }

  /// The tiles of `queries` queries each, one of the sizes that the schedule was made for.
  ListView<QueryTile> tiles(int queries) const;

  /// Tiles of keys of the window branch, and the segments that they refer to.
  ListView<WindowKeyTile> window_key_tiles() const { return window_key_tiles_.view(); }
  const std::int32_t* window_key_segments() const { return window_key_segments_.data(); }

  /// Tiles of summaries, the runs that they refer to, and the number of their places.
  ListView<SummaryKeyTile> summary_key_tiles() const { return summary_key_tiles_.view(); }
  const QueryRun* query_runs() const { return query_runs_.data(); }
  std::int64_t summary_slots() const { return summary_slots_; }

  std::int64_t end_position() const { return end_position_; }  ///< no token of the rank is at it or beyond

 private:
  struct Tiles {
    int queries;
    std::vector<QueryTile> host;
    DeviceArray<QueryTile> device;
  };
  template <class Tile>
  struct KeyTiles {
    std::vector<Tile> host;
    DeviceArray<Tile> device;

    KeyTiles() = default;
    explicit KeyTiles(std::vector<Tile> tiles) : host(std::move(tiles)), device(host) {}
    ListView<Tile> view() const { return {host.data(), device.data(), static_cast<std::int64_t>(host.size())}; }
  };
  DeviceArray<Segment> device_segments_;
  std::vector<Tiles> tiles_;
  KeyTiles<WindowKeyTile> window_key_tiles_;
  DeviceArray<std::int32_t> window_key_segments_;
  KeyTiles<SummaryKeyTile> summary_key_tiles_;
  DeviceArray<QueryRun> query_runs_;
  std::int64_t summary_slots_ = 0;
  std::int64_t end_position_ = 0;
};

/// The schedule as this device made it; ArgumentError when another device did.
const CudaSegmentSchedule& cuda_schedule(const SegmentSchedule* schedule);

}  // namespace cpnsa::cuda
