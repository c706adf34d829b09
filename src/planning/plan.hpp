#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "cpnsa/attention.hpp"
#include "src/planning/block_exchange.hpp"
#include "src/planning/halo.hpp"
#include "src/planning/layout.hpp"

namespace cpnsa::planning {

/// Everything one rank decides before anything runs: pure data from the configuration and the partition. Only which
/// blocks are fetched is decided later, by BlockPlanner from the need matrix.
struct Plan {
  Plan(const Config& config, const Partition& partition, int rank, const AttentionOptions& options);
  Plan(const Plan&) = delete;  // `blocks` refers to `layout`
  Plan& operator=(const Plan&) = delete;

  /// Tells whether anything reads summaries: the compressed branch, or importance.
  static bool needs_summaries(const Config& config, const AttentionOptions& options);

  Layout layout;
  RankHalo summary_halo;
  RankHalo window_halo;
  BlockPlanner blocks;

  int rank;
  std::int64_t rows;                  ///< this rank's tokens
  std::vector<Segment> segments;      ///< its runs, as kernels see them
  std::vector<SummaryRun> own_runs;   ///< summaries that lie whole in own rows
  std::vector<SummaryRun> halo_runs;  ///< summaries that need the summary halo, where all of their tokens are

  /// Summaries are gathered in rank order: the index of each rank's first there, then the number of all. [P + 1]
  std::vector<std::int64_t> gathered_first;
  std::vector<RowRange> own_to_gathered;  ///< index among all C -> index in gathered order, of this rank's
  std::vector<RowRange> gathered_to_all;  ///< index in gathered order -> index among all C, of the others'
  std::vector<RowRange> all_to_gathered;  ///< the way back, for the gradients of the other ranks'
  std::vector<RowRange> own_to_all;       ///< own summaries, counted from 0 -> index among all C

  /// Bytes that this rank receives of its peers' tensors, by Traffic, in a forward and in a backward whose selected
  /// branch runs as `schedule` says. Control and parameter gradients are the step's own to count.
  std::array<std::int64_t, traffic_kinds> bytes_forward(const BlockSchedule& schedule) const;
  std::array<std::int64_t, traffic_kinds> bytes_backward(const BlockSchedule& schedule) const;

 private:
  /// `config` as planned.
  Plan(const Partition& partition, const Config& config, int rank, const AttentionOptions& options);

  Config config_;  ///< as planned: a branch that is off reaches nothing
  AttentionOptions options_;
};

}  // namespace cpnsa::planning
