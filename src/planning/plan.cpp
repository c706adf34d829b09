#include "src/planning/plan.hpp"

#include <algorithm>

namespace cpnsa::planning {

namespace {

Config without_absent_branches(Config config, const AttentionOptions& options) {
  if (!config.has_branch(2)) config.window = 1;
  if (!Plan::needs_summaries(config, options)) config.compress_block = std::int64_t{1} << 62;  // longer than documents
  return config;
}

}  // namespace

bool Plan::needs_summaries(const Config& config, const AttentionOptions& options) {
  return config.has_branch(0) || (config.has_branch(1) && !options.given_selection);
}

Plan::Plan(const Config& given, const Partition& partition, int rank, const AttentionOptions& options)
    : Plan(partition, without_absent_branches(given, options), rank, options) {}

Plan::Plan(const Partition& partition, const Config& config, int rank, const AttentionOptions& options)
    : layout(config, partition),
      summary_halo(at(plan_halo(layout, summary_halo_ranges(layout, config)), rank)),
      window_halo(at(plan_halo(layout, window_halo_ranges(layout, config)), rank)),
      blocks(layout, config.num_kv_heads, rank, config.has_branch(1)),
      rank(rank),
      rows(at(layout.rows, rank)),
      config_(config),
      options_(options) {
  for (const OwnedRun& run : at(layout.runs, rank)) {
    const Document& document = layout.document_of(run);
    const std::int64_t position = run.begin - document.begin;
    const std::int64_t reach = std::min(config.window - 1, position);
    segments.push_back({run.row, run.rows, position, document.block, document.summary, document.summaries,
                        reach > 0 ? window_halo.row_of(run.begin - reach) : 0, reach});

    const auto [first, inside, last] = layout.summaries_starting_in(run);
    if (first < inside) own_runs.push_back({run.row, document.summary + first, inside - first});
    if (inside < last)
      halo_runs.push_back({summary_halo.row_of(document.begin + inside * config.compress_stride),
                           document.summary + inside, last - inside});
  }

  gathered_first.push_back(0);
  for (int peer = 0; peer < layout.ranks(); ++peer) {
    const auto index = to_size(peer);
    const std::int64_t first = gathered_first.back();
    for (const RowRange& range : layout.summary_ranges[index]) {
      const RowRange to_all{first + range.source, range.destination, range.count};
      const RowRange to_gathered{range.destination, first + range.source, range.count};
      if (peer == rank)
        own_to_gathered.push_back(to_gathered);
      else {
        gathered_to_all.push_back(to_all);
        all_to_gathered.push_back(to_gathered);
      }
    }
    gathered_first.push_back(first + layout.own_summaries[index]);
  }
  own_to_all = at(layout.summary_ranges, rank);
}

std::array<std::int64_t, traffic_kinds> Plan::bytes_forward(const BlockSchedule& schedule) const {
  const std::int64_t token_bytes = config_.num_kv_heads * (config_.head_dim_qk + config_.head_dim_v) *
                                   static_cast<std::int64_t>(size_of(options_.dtype));
  std::array<std::int64_t, traffic_kinds> bytes{};
  at(bytes, Traffic::halo) = (summary_halo.received_rows + window_halo.received_rows) * token_bytes;
  at(bytes, Traffic::summaries) = (layout.summaries - at(layout.own_summaries, rank)) * token_bytes;
  at(bytes, Traffic::blocks) = schedule.received * config_.select_block * token_bytes / config_.num_kv_heads;
  return bytes;
}

std::array<std::int64_t, traffic_kinds> Plan::bytes_backward(const BlockSchedule& schedule) const {
  const std::int64_t token_elements = config_.num_kv_heads * (config_.head_dim_qk + config_.head_dim_v);
  const std::int64_t block_elements = config_.select_block * token_elements / config_.num_kv_heads;
  const auto element = static_cast<std::int64_t>(size_of(options_.dtype));
  const auto accumulated = static_cast<std::int64_t>(size_of(accumulate_dtype(options_.dtype)));
  std::int64_t sent = 0;
  for (const ExchangeRound& round : schedule.rounds) sent += static_cast<std::int64_t>(round.packed.size());
  std::int64_t refetched = options_.refetch_blocks ? schedule.received : 0;
  // Recomputing the branches takes every round first; the last two of them are then still there.
  if (options_.refetch_blocks && options_.recompute_branches)
    for (std::size_t round = 0; round + 2 < schedule.rounds.size(); ++round)
      refetched += schedule.rounds[round].received;

  std::array<std::int64_t, traffic_kinds> bytes{};
  at(bytes, Traffic::refetched_blocks) = refetched * block_elements * element;
  at(bytes, Traffic::block_gradients) = sent * block_elements * accumulated;
  // Without the compressed branch summaries serve importance, which has no gradient.
  const bool compressed = config_.has_branch(0);
  if (compressed)
    at(bytes, Traffic::summary_gradients) =
        (layout.ranks() - 1) * at(layout.own_summaries, rank) * token_elements * accumulated;
  at(bytes, Traffic::halo_gradients) =
      ((compressed ? summary_halo.sent_rows : 0) + window_halo.sent_rows) * token_elements * accumulated;
  return bytes;
}

}  // namespace cpnsa::planning
