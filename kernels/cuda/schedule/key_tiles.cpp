#include "kernels/cuda/schedule/key_tiles.hpp"

#include <algorithm>
#include <map>

#include "kernels/cuda/common/summary_rule.cuh"

namespace cpnsa::cuda {
namespace {

/// The runs of every document that has queries on this rank, ascending; documents are told apart by their block 0.
std::map<std::int64_t, std::vector<const Segment*>> segments_of_documents(std::span<const Segment> segments) {
  std::map<std::int64_t, std::vector<const Segment*>> documents;
  for (const Segment& segment : segments) documents[segment.block].push_back(&segment);
  for (auto& [block, list] : documents)
    std::sort(list.begin(), list.end(), [](const Segment* a, const Segment* b) { return a->position < b->position; });
  return documents;
}

/// The first query at or after a position; the number of queries if there is none.
std::int64_t first_query_at(std::span<const QueryRun> runs, std::int64_t position) {
  for (const QueryRun& run : runs)
    if (run.position + run.queries > position) return run.first + std::max<std::int64_t>(0, position - run.position);
  return runs.back().first + runs.back().queries;
}

}  // namespace

WindowKeyTiles window_key_tiles(std::span<const Segment> segments, std::int64_t keys) {
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
    for (std::int64_t row = 0; row < segment.rows; row += keys)
      add(segment.row + row, std::min(keys, segment.rows - row), false, {&i, 1});
    if (segment.halo_rows == 0) continue;
    const std::int64_t end = segment.halo_row + segment.halo_rows;
    for (std::int64_t tile = segment.halo_row / keys; tile * keys < end; ++tile) halo[tile].push_back(i);
    halo_rows = std::max(halo_rows, end);
  }
  for (const auto& [tile, seen_by] : halo) {
    const std::int64_t row = tile * keys;
    add(row, std::min(keys, halo_rows - row), true, seen_by);
  }
  return result;
}

SummaryKeyTiles summary_key_tiles(std::span<const Segment> segments, const Config& config, std::int64_t keys) {
  const SummaryRule rule(config);
  const std::int64_t part = std::max<std::int64_t>(1, rows_per_part / config.heads_per_group());
  SummaryKeyTiles result;
  for (const auto& [block, list] : segments_of_documents(segments)) {
    const auto run_begin = static_cast<std::int32_t>(result.runs.size());
    std::int64_t queries = 0;
    for (const Segment* segment : list) {
      result.runs.push_back({queries, segment->rows, segment->row, segment->position});
      queries += segment->rows;
    }
    const std::span<const QueryRun> runs = std::span<const QueryRun>(result.runs).subspan(run_begin);
    const std::int64_t summaries = rule.visible(static_cast<int>(list.back()->position + list.back()->rows - 1));

    std::vector<std::int64_t> first_query;  // that sees a tile
    for (std::int64_t summary = 0; summary < summaries; summary += keys)
      first_query.push_back(first_query_at(runs, summary * rule.stride + rule.length - 1));
    // Parts outside: tiles that wait for one another are not side by side.
    for (std::int64_t begin = 0; begin < queries; begin += part)
      for (std::size_t tile = 0; tile < first_query.size() && first_query[tile] < begin + part; ++tile) {
        const std::int64_t summary = static_cast<std::int64_t>(tile) * keys;
        result.tiles.push_back({list.front()->summary + summary, std::max(begin, first_query[tile]),
                                std::min(begin + part, queries), static_cast<std::int32_t>(summary),
                                static_cast<std::int32_t>(std::min(keys, summaries - summary)), run_begin,
                                static_cast<std::int32_t>(result.runs.size()),
                                static_cast<std::int32_t>(result.slots + static_cast<std::int64_t>(tile)),
                                static_cast<std::int32_t>(begin / part - first_query[tile] / part)});
      }
    result.slots += static_cast<std::int64_t>(first_query.size());
  }
  return result;
}

}  // namespace cpnsa::cuda
