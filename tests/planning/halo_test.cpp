// Halo plans, tested by moving token numbers along their lists.

#include "src/planning/halo.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "tests/planning/simulated_halo.hpp"
#include "tests/support/partitions.hpp"

namespace cpnsa::test {
namespace {

using planning::Layout;
using planning::OwnedRun;
using planning::PeerRange;
using planning::RankHalo;

std::vector<std::vector<std::int64_t>> tokens_of(const Partition& partition) {
  std::vector<std::vector<std::int64_t>> tokens;
  for (int rank = 0; rank < partition.ranks(); ++rank) tokens.push_back(partition.global_rows(rank));
  return tokens;
}

// The tokens that each rank needs in its halos, counted one by one: those that windows reach before a run, and those
// that the summaries across the end of a run cover.
struct Needs {
  std::vector<std::set<std::int64_t>> window, summaries;
};

Needs needs_of(const Problem& problem, const Partition& partition) {
  const Config& config = problem.config;
  Needs needs{std::vector<std::set<std::int64_t>>(static_cast<std::size_t>(partition.ranks())), {}};
  needs.summaries = needs.window;
  for (int rank = 0; rank < partition.ranks(); ++rank) {
    const auto index = static_cast<std::size_t>(rank);
    const std::vector<std::int64_t> rows = partition.global_rows(rank);
    for (std::size_t row = 0; row < rows.size(); ++row) {
      const Document document = document_of(problem.cu_seqlens, rows[row]);
      const std::int64_t position = rows[row] - document.begin;
      // Preceding rows that are consecutive tokens are in the same run; tokens before them that a window reaches are
      // not.
      std::size_t first = row;
      while (first > 0 && rows[first - 1] == rows[first] - 1 && rows[first] > document.begin) --first;
      for (std::int64_t u = std::max<std::int64_t>(0, position - config.window + 1); document.begin + u < rows[first];
           ++u)
        needs.window[index].insert(document.begin + u);

      if (position % config.compress_stride != 0 || position + config.compress_block > document.length) continue;
      std::size_t last = row;
      while (last + 1 < rows.size() && rows[last + 1] == rows[last] + 1) ++last;
      if (rows[last] < rows[row] + config.compress_block - 1)  // the whole summary is computed from halo rows
        for (std::int64_t u = 0; u < config.compress_block; ++u) needs.summaries[index].insert(rows[row] + u);
    }
  }
  return needs;
}

void check_halo(const std::vector<RankHalo>& halos, const std::vector<std::set<std::int64_t>>& needed,
                const std::vector<std::vector<std::int64_t>>& tokens) {
  const std::vector<std::vector<std::int64_t>> stored = simulate_halo(halos, tokens);
  for (std::size_t rank = 0; rank < halos.size(); ++rank) {
    const RankHalo& halo = halos[rank];
    ASSERT_THAT(stored[rank], testing::ElementsAreArray(needed[rank])) << "rank " << rank;
    for (std::size_t row = 0; row < stored[rank].size(); ++row)
      ASSERT_EQ(halo.row_of(stored[rank][row]), static_cast<std::int64_t>(row));

    // A rank receives no tokens that it owns; peers ascend; messages are not empty; sends match receives.
    for (const auto* list : {&halo.sends, &halo.receives})
      for (std::size_t i = 0; i < list->size(); ++i) {
        ASSERT_NE((*list)[i].peer, static_cast<int>(rank));
        ASSERT_GT((*list)[i].count, 0);
        if (i > 0) {
          ASSERT_LT((*list)[i - 1].peer, (*list)[i].peer);
        }
      }
    for (const PeerRange& send : halo.sends) {
      std::int64_t received = 0;
      for (const PeerRange& receive : halos[static_cast<std::size_t>(send.peer)].receives)
        if (receive.peer == static_cast<int>(rank)) received += receive.count;
      ASSERT_EQ(send.count, received);
    }
    // Gradients are added along the packed list one peer at a time, so no own row may occur twice within a peer's part.
    ASSERT_EQ(halo.packed_first.size(), halo.sends.size());
    for (std::size_t i = 0; i < halo.sends.size(); ++i) {
      const std::size_t end =
          i + 1 < halo.packed_first.size() ? static_cast<std::size_t>(halo.packed_first[i + 1]) : halo.packed.size();
      std::set<std::int64_t> own_rows;
      std::int64_t count = 0;
      for (auto item = static_cast<std::size_t>(halo.packed_first[i]); item < end; ++item)
        for (std::int64_t k = 0; k < halo.packed[item].count; ++k, ++count)
          own_rows.insert(halo.packed[item].source + k);
      ASSERT_EQ(count, halo.sends[i].count);
      ASSERT_EQ(static_cast<std::int64_t>(own_rows.size()), count);
    }
  }
}

TEST(Halo, HoldsExactlyWhatWindowsAndSummariesNeed) {
  for (std::uint64_t seed = 1; seed <= 120; ++seed) {
    const Problem problem = random_problem(seed, 120);
    SCOPED_TRACE(describe(problem));
    for (const int ranks : {1, 2, 3, 5})
      for (const PartitionKind kind : partition_kinds) {
        SCOPED_TRACE(name_of(kind) + ", " + std::to_string(ranks) + " ranks");
        const Partition partition = make_partition(kind, problem, ranks);
        const Layout layout(problem.config, partition);
        const Needs needs = needs_of(problem, partition);
        const auto tokens = tokens_of(partition);
        check_halo(plan_halo(layout, window_halo_ranges(layout, problem.config)), needs.window, tokens);
        check_halo(plan_halo(layout, summary_halo_ranges(layout, problem.config)), needs.summaries, tokens);
        if (HasFatalFailure()) return;
      }
  }
}

TEST(Halo, ContiguousRanksExchangeOnlyTheWindow) {
  Problem problem;
  problem.config = {.num_q_heads = 1,
                    .num_kv_heads = 1,
                    .head_dim_qk = 1,
                    .head_dim_v = 1,
                    .compress_block = 4,
                    .compress_stride = 2,
                    .select_block = 4,
                    .window = 6,
                    .softmax_scale = {},
                    .compressor = Compressor::mean};
  problem.cu_seqlens = cu_seqlens_of({32});
  const Partition partition = Partition::contiguous(problem.cu_seqlens, 4, 2);
  const Layout layout(problem.config, partition);
  const auto window = plan_halo(layout, window_halo_ranges(layout, problem.config));
  EXPECT_EQ(window[0].rows, 0);
  EXPECT_EQ(window[1].rows, 5);  // w - 1
  EXPECT_THAT(window[0].sends, testing::ElementsAre(PeerRange{1, 0, 5}));
  EXPECT_THAT(window[1].receives, testing::ElementsAre(PeerRange{0, 0, 5}));
  const auto summaries = plan_halo(layout, summary_halo_ranges(layout, problem.config));
  EXPECT_EQ(summaries[0].received_rows, 2);  // l - s
  EXPECT_EQ(summaries[1].received_rows, 0);
}

}  // namespace
}  // namespace cpnsa::test
