#pragma once

// The key tiles of the key-outer backward kernels, each with the range of local queries that attend to it. One thread
// block at a time adds to the gradient of a key, so that its sum has one order.

#include <cstdint>
#include <span>
#include <vector>

#include "cpnsa/ops.hpp"

namespace cpnsa::cuda {

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

WindowKeyTiles window_key_tiles(std::span<const Segment> segments, std::int64_t keys);

/// A segment as a stretch of its document's queries on this rank, which are counted in ascending order of position.
struct QueryRun {
  std::int64_t first;  ///< query
  std::int64_t queries;
  std::int64_t row;       ///< local row of the first
  std::int64_t position;  ///< of the first
};

/// Consecutive summaries of one document, with a part of the queries that see some of them. The parts of the same
/// summaries have the same `slot`, and add to it in the order of `turn`.
struct SummaryKeyTile {
  std::int64_t row;          ///< of the summaries tensor
  std::int64_t query_begin;  ///< of the document's queries on this rank
  std::int64_t query_end;
  std::int32_t summary;  ///< first of the tile, in the document
  std::int32_t summaries;
  std::int32_t run_begin;  ///< in SummaryKeyTiles::runs
  std::int32_t run_end;
  std::int32_t slot;
  std::int32_t turn;
};

struct SummaryKeyTiles {
  std::vector<SummaryKeyTile> tiles;  ///< a later turn after an earlier one
  std::vector<QueryRun> runs;
  std::int64_t slots = 0;  ///< at most C
};

SummaryKeyTiles summary_key_tiles(std::span<const Segment> segments, const Config& config, std::int64_t keys);

/// (query, head) rows that one thread block takes in at most, where a tile of keys is seen by many.
inline constexpr std::int64_t rows_per_part = 8192;

}  // namespace cpnsa::cuda
