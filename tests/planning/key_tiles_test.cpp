// The key tiles of the CUDA backward, checked against every (query, key) pair: each pair is in exactly one tile. The
// code is plain C++ and runs without a GPU.

#include "kernels/cuda/schedule/key_tiles.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "src/planning/plan.hpp"
#include "tests/support/partitions.hpp"
#include "tests/support/seeds.hpp"

namespace cpnsa::test {
namespace {

using cuda::SummaryKeyTile;
using cuda::SummaryKeyTiles;
using cuda::WindowKeyTile;
using cuda::WindowKeyTiles;

// Documents of many tiles, partitioned unevenly; up to 64 query heads per KV head, so that few queries fill a part.
Problem problem_of(std::uint64_t seed) {
  Random random(seed);
  Problem problem;
  problem.seed = seed;
  Config& config = problem.config;
  config.num_kv_heads = 1;
  config.num_q_heads = random.pick(std::vector<std::int64_t>{1, 16, 64});
  config.head_dim_qk = config.head_dim_v = 8;
  config.compress_stride = random.pick(std::vector<std::int64_t>{4, 8, 16});
  config.compress_block = config.compress_stride * random.integer(1, 2);
  config.select_block = 2 * config.compress_block;
  config.select_count = 4;
  config.window = random.pick(std::vector<std::int64_t>{1, 17, 64, 200});
  config.compressor = Compressor::mean;
  std::vector<std::int64_t> lengths;
  for (std::int64_t documents = random.integer(1, 4); documents > 0; --documents)
    lengths.push_back(random.chance(0.3) ? random.integer(1, 20) : random.integer(100, 1500));
  problem.cu_seqlens = cu_seqlens_of(lengths);
  return problem;
}

void check_window(const planning::Plan& plan, const Config& config, std::int64_t keys) {
  const WindowKeyTiles found = cuda::window_key_tiles(plan.segments, keys);
  // The tile of each (whether in the halo, row).
  std::map<std::pair<bool, std::int64_t>, const WindowKeyTile*> tile_of;
  for (const WindowKeyTile& tile : found.tiles) {
    ASSERT_GE(tile.rows, 1);
    ASSERT_LE(tile.rows, keys);
    ASSERT_LT(tile.segment_begin, tile.segment_end);
    ASSERT_LE(static_cast<std::size_t>(tile.segment_end), found.segments.size());
    for (std::int32_t i = tile.segment_begin + 1; i < tile.segment_end; ++i)
      ASSERT_LT(found.segments[static_cast<std::size_t>(i) - 1], found.segments[static_cast<std::size_t>(i)]);
    for (std::int64_t row = tile.row; row < tile.row + tile.rows; ++row) {
      ASSERT_LT(row, tile.halo ? plan.window_halo.rows : plan.rows);
      const bool first = tile_of.emplace(std::pair{tile.halo != 0, row}, &tile).second;
      ASSERT_TRUE(first) << "row " << row << " is in two tiles";
    }
  }
  for (std::size_t index = 0; index < plan.segments.size(); ++index) {
    const Segment& segment = plan.segments[index];
    for (std::int64_t query = segment.position; query < segment.position + segment.rows; ++query)
      for (std::int64_t key = std::max<std::int64_t>(0, query - config.window + 1); key <= query; ++key) {
        const bool halo = key < segment.position;
        const std::int64_t row = halo ? segment.halo_row + key - (segment.position - segment.halo_rows)
                                      : segment.row + key - segment.position;
        const auto at = tile_of.find({halo, row});
        ASSERT_NE(at, tile_of.end()) << "no tile has row " << row;
        const auto begin = found.segments.begin() + at->second->segment_begin;
        const auto end = found.segments.begin() + at->second->segment_end;
        ASSERT_EQ(std::count(begin, end, static_cast<std::int32_t>(index)), 1);
      }
  }
}

// The local rows of a tile's queries.
std::vector<std::int64_t> rows_of(const SummaryKeyTiles& found, const SummaryKeyTile& tile) {
  std::vector<std::int64_t> rows;
  for (std::int32_t i = tile.run_begin; i < tile.run_end; ++i) {
    const cuda::QueryRun& run = found.runs.at(static_cast<std::size_t>(i));
    for (std::int64_t query = std::max(run.first, tile.query_begin);
         query < std::min(run.first + run.queries, tile.query_end); ++query)
      rows.push_back(run.row + query - run.first);
  }
  return rows;
}

void check_slots(const SummaryKeyTiles& found, std::int64_t summaries) {
  ASSERT_LE(found.slots, summaries);
  std::map<std::int32_t, std::vector<SummaryKeyTile>> slots;
  for (const SummaryKeyTile& tile : found.tiles) {
    ASSERT_GE(tile.slot, 0);
    ASSERT_LT(tile.slot, found.slots);
    std::vector<SummaryKeyTile>& earlier = slots[tile.slot];
    ASSERT_EQ(tile.turn, static_cast<std::int32_t>(earlier.size())) << "a turn that never comes, or comes twice";
    if (!earlier.empty()) {
      ASSERT_EQ(tile.row, earlier.back().row);
      ASSERT_EQ(tile.summaries, earlier.back().summaries);
      ASSERT_EQ(tile.query_begin, earlier.back().query_end) << "queries in ascending order, none left out";
    }
    earlier.push_back(tile);
  }
}

void check_summaries(const planning::Plan& plan, const Config& config, std::int64_t keys) {
  const SummaryKeyTiles found = cuda::summary_key_tiles(plan.segments, config, keys);
  check_slots(found, plan.layout.summaries);
  const std::int64_t part = std::max<std::int64_t>(1, cuda::rows_per_part / config.heads_per_group());
  const auto summaries = static_cast<std::size_t>(plan.layout.summaries);
  std::vector<int> pairs(static_cast<std::size_t>(plan.rows) * summaries);
  for (const SummaryKeyTile& tile : found.tiles) {
    ASSERT_GE(tile.summaries, 1);
    ASSERT_LE(tile.summaries, keys);
    ASSERT_LT(tile.query_begin, tile.query_end);
    ASSERT_LE(tile.query_end - tile.query_begin, part);
    const std::vector<std::int64_t> rows = rows_of(found, tile);
    ASSERT_EQ(static_cast<std::int64_t>(rows.size()), tile.query_end - tile.query_begin);
    for (const std::int64_t row : rows)
      for (std::int64_t i = 0; i < tile.summaries; ++i)
        ++pairs.at(static_cast<std::size_t>(row) * summaries + static_cast<std::size_t>(tile.row + i));
  }
  for (const Segment& segment : plan.segments)
    for (std::int64_t row = segment.row; row < segment.row + segment.rows; ++row)
      for (std::int64_t i = 0; i < segment.summaries; ++i) {
        const std::int64_t position = segment.position + row - segment.row;
        const bool visible = i * config.compress_stride + config.compress_block - 1 <= position;
        int& count = pairs[static_cast<std::size_t>(row) * summaries + static_cast<std::size_t>(segment.summary + i)];
        ASSERT_LE(count, 1) << "row " << row << ", summary " << i;
        ASSERT_TRUE(count == 1 || !visible) << "row " << row << ", summary " << i;
        count = 0;
      }
  ASSERT_TRUE(std::all_of(pairs.begin(), pairs.end(), [](int count) { return count == 0; }))
      << "a query meets another document's summary";
}

TEST(KeyTiles, HaveEveryPairOnce) {
  for (const std::uint64_t seed : seeds(15)) {
    const Problem problem = problem_of(seed);
    SCOPED_TRACE(describe(problem));
    for (const int ranks : {1, 2, 3})
      for (const PartitionKind kind : partition_kinds) {
        SCOPED_TRACE(name_of(kind) + ", " + std::to_string(ranks) + " ranks");
        const Partition partition = make_partition(kind, problem, ranks);
        for (int rank = 0; rank < ranks; ++rank) {
          const planning::Plan plan(problem.config, partition, rank, {});
          for (const std::int64_t keys : {std::int64_t{64}, std::int64_t{128}}) {
            check_window(plan, problem.config, keys);
            check_summaries(plan, problem.config, keys);
            if (HasFatalFailure()) return;
          }
        }
      }
  }
}

}  // namespace
}  // namespace cpnsa::test
