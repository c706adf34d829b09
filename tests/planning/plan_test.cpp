// The plans of all ranks together.

#include "src/planning/plan.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <numeric>

#include "tests/planning/simulated_halo.hpp"
#include "tests/support/partitions.hpp"

namespace cpnsa::test {
namespace {

using planning::Plan;

struct World {
  World(const Problem& problem, const Partition& partition) : config(problem.config), cu_seqlens(problem.cu_seqlens) {
    for (int rank = 0; rank < partition.ranks(); ++rank) {
      plans.push_back(std::make_unique<Plan>(config, partition, rank, AttentionOptions{.gradient_dtype = {}}));
      tokens.push_back(partition.global_rows(rank));
    }
    for (std::size_t i = 1; i < cu_seqlens.size(); ++i) {
      const std::int64_t length = cu_seqlens[i] - cu_seqlens[i - 1];
      for (std::int64_t k = 0; k < config.summaries_of(length); ++k)
        summary_tokens.push_back(cu_seqlens[i - 1] + k * config.compress_stride);
    }
  }

  std::vector<planning::RankHalo> halos(planning::RankHalo Plan::*member) const {
    std::vector<planning::RankHalo> result;
    for (const auto& plan : plans) result.push_back((*plan).*member);
    return result;
  }

  Config config;
  std::vector<std::int64_t> cu_seqlens;
  std::vector<std::unique_ptr<Plan>> plans;
  std::vector<std::vector<std::int64_t>> tokens;  // the tokens of each rank's rows
  std::vector<std::int64_t> summary_tokens;       // the first token of each of the C summaries
};

void check_segments(const World& world) {
  const auto halo = simulate_halo(world.halos(&Plan::window_halo), world.tokens);
  for (std::size_t rank = 0; rank < world.plans.size(); ++rank) {
    std::int64_t row = 0;
    for (const Segment& segment : world.plans[rank]->segments) {
      ASSERT_EQ(segment.row, row);
      ASSERT_GE(segment.rows, 1);
      const std::int64_t first = world.tokens[rank][static_cast<std::size_t>(row)];
      const Document document = document_of(world.cu_seqlens, first);
      std::int64_t block = 0, summary = 0;
      for (std::size_t i = 1; i < world.cu_seqlens.size() && world.cu_seqlens[i] <= document.begin; ++i) {
        block += world.config.blocks_of(world.cu_seqlens[i] - world.cu_seqlens[i - 1]);
        summary += world.config.summaries_of(world.cu_seqlens[i] - world.cu_seqlens[i - 1]);
      }
      ASSERT_EQ(segment.position, first - document.begin);
      ASSERT_EQ(segment.block, block);
      ASSERT_EQ(segment.summary, summary);
      ASSERT_EQ(segment.summaries, world.config.summaries_of(document.length));
      ASSERT_LE(segment.position + segment.rows, document.length);
      for (std::int64_t i = 0; i < segment.rows; ++i)
        ASSERT_EQ(world.tokens[rank][static_cast<std::size_t>(row + i)], first + i);
      ASSERT_EQ(segment.halo_rows, std::min(world.config.window - 1, segment.position));
      for (std::int64_t i = 0; i < segment.halo_rows; ++i)
        ASSERT_EQ(halo[rank].at(static_cast<std::size_t>(segment.halo_row + i)), first - segment.halo_rows + i);
      row += segment.rows;
    }
    ASSERT_EQ(row, world.plans[rank]->rows);
    ASSERT_EQ(row, static_cast<std::int64_t>(world.tokens[rank].size()));
  }
}

void check_summaries(const World& world) {
  const auto halo = simulate_halo(world.halos(&Plan::summary_halo), world.tokens);
  std::vector<int> computed(world.summary_tokens.size());
  std::vector<int> owner(computed.size(), -1);
  for (std::size_t rank = 0; rank < world.plans.size(); ++rank) {
    const auto check_runs = [&](const std::vector<SummaryRun>& runs, const std::vector<std::int64_t>& rows) {
      for (const SummaryRun& run : runs)
        for (std::int64_t k = 0; k < run.count; ++k) {
          const auto summary = static_cast<std::size_t>(run.summary + k);
          ++computed.at(summary);
          owner[summary] = static_cast<int>(rank);
          for (std::int64_t u = 0; u < world.config.compress_block; ++u)
            ASSERT_EQ(rows.at(static_cast<std::size_t>(run.source_row + k * world.config.compress_stride + u)),
                      world.summary_tokens[summary] + u);
        }
    };
    check_runs(world.plans[rank]->own_runs, world.tokens[rank]);
    check_runs(world.plans[rank]->halo_runs, halo[rank]);
  }
  ASSERT_THAT(computed, testing::Each(1));
  for (std::size_t summary = 0; summary < owner.size(); ++summary)
    ASSERT_THAT(world.tokens[static_cast<std::size_t>(owner[summary])],
                testing::Contains(world.summary_tokens[summary]))
        << "the owner of the first token";
}

// Moves the indices of summaries from each rank through the gathered order to all C on every rank, and back.
void check_gather(const World& world) {
  const auto count = world.summary_tokens.size();
  std::vector<std::int64_t> gathered(count, -1);
  const auto copy = [](const std::vector<RowRange>& ranges, const std::vector<std::int64_t>& from,
                       std::vector<std::int64_t>& to) {
    for (const RowRange& range : ranges)
      for (std::int64_t i = 0; i < range.count; ++i) {
        ASSERT_EQ(to.at(static_cast<std::size_t>(range.destination + i)), -1);
        to[static_cast<std::size_t>(range.destination + i)] = from.at(static_cast<std::size_t>(range.source + i));
      }
  };
  std::vector<std::int64_t> numbers(count);
  std::iota(numbers.begin(), numbers.end(), 0);
  for (std::size_t rank = 0; rank < world.plans.size(); ++rank) {
    const Plan& plan = *world.plans[rank];
    ASSERT_EQ(plan.gathered_first.size(), world.plans.size() + 1);
    ASSERT_EQ(plan.gathered_first.back(), static_cast<std::int64_t>(count));
    copy(plan.own_to_gathered, numbers, gathered);
    for (const RowRange& range : plan.own_to_gathered) {
      ASSERT_GE(range.destination, plan.gathered_first[rank]);
      ASSERT_LE(range.destination + range.count, plan.gathered_first[rank + 1]);
    }
  }
  ASSERT_THAT(gathered, testing::Not(testing::Contains(-1)));
  for (const auto& plan : world.plans) {
    std::vector<std::int64_t> all(count, -1), back(count, -1);
    copy(plan->gathered_to_all, gathered, all);
    const auto own_begin = static_cast<std::size_t>(plan->gathered_first[static_cast<std::size_t>(plan->rank)]);
    const auto own_end = static_cast<std::size_t>(plan->gathered_first[static_cast<std::size_t>(plan->rank) + 1]);
    const std::vector<std::int64_t> own(gathered.begin() + static_cast<std::ptrdiff_t>(own_begin),
                                        gathered.begin() + static_cast<std::ptrdiff_t>(own_end));
    copy(plan->own_to_all, own, all);
    ASSERT_EQ(all, numbers);
    copy(plan->all_to_gathered, numbers, back);
    for (std::size_t i = 0; i < count; ++i) ASSERT_EQ(back[i], i >= own_begin && i < own_end ? -1 : gathered[i]);
  }
}

TEST(Plan, CoversEveryTokenAndSummaryOnce) {
  for (std::uint64_t seed = 1; seed <= 100; ++seed) {
    const Problem problem = random_problem(seed, 120);
    SCOPED_TRACE(describe(problem));
    for (const int ranks : {1, 2, 3, 5})
      for (const PartitionKind kind : partition_kinds) {
        SCOPED_TRACE(name_of(kind) + ", " + std::to_string(ranks) + " ranks");
        const World world(problem, make_partition(kind, problem, ranks));
        check_segments(world);
        check_summaries(world);
        check_gather(world);
        if (HasFatalFailure()) return;
      }
  }
}

}  // namespace
}  // namespace cpnsa::test
