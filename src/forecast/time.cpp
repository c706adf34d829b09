#include "src/forecast/time.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include "src/planning/at.hpp"

namespace cpnsa::forecasts {
namespace {

/// Bytes of one part of a rank's messages, by peer.
using ByPeer = std::vector<double>;

Work work_of_document(const Config& config, std::int64_t tokens) {
  const Segment whole{0, tokens, 0, 0, 0, config.summaries_of(tokens), 0, 0};
  return work_of(config, {&whole, 1}, config.summaries_of(tokens));
}

double sum(const ByWork& seconds) {
  return std::accumulate(seconds.begin(), seconds.end(), 0.0);
}

/// The part of `wire` seconds that is left when `compute` seconds run at the same time.
double exposed(double wire, double compute) {
  return std::max(0.0, wire - compute);
}

ByPeer halo_bytes(const planning::RankHalo& halo, int ranks, double token_bytes) {
  ByPeer bytes(to_size(ranks));
  for (const planning::PeerRange& range : halo.receives)
    at(bytes, range.peer) += static_cast<double>(range.count) * token_bytes;
  return bytes;
}

void add(ByPeer& sum, const ByPeer& more) {
  for (std::size_t peer = 0; peer < sum.size(); ++peer) sum[peer] += more[peer];
}

}  // namespace

TimeModel::TimeModel(const ComputeModel& compute, const NetworkModel& network) : compute_(compute), network_(network) {
  for (const MeasuredLength& length : compute.lengths)
    measured_.push_back(work_of_document(compute.config, length.tokens));
}

// The rate of a kind of work is that of the measured lengths whose work of this kind lies around it.
ByWork TimeModel::seconds(const ByWork& work, bool backward) const {
  ByWork result{};
  for (const WorkKind kind : enum_values<WorkKind>) {
    struct Point {
      double work;
      double rate;
    };
    std::optional<Point> below, above;
    for (std::size_t i = 0; i < measured_.size(); ++i) {
      const double measured = at(backward ? compute_.lengths[i].backward : compute_.lengths[i].forward, kind);
      const double amount = at(backward ? measured_[i].backward : measured_[i].forward, kind);
      if (measured <= 0 || amount <= 0) continue;
      const Point point{amount, amount / measured};
      if (amount <= at(work, kind)) below = point;
      if (amount >= at(work, kind) && !above) above = point;
    }
    if (!below) below = above;
    if (!above) above = below;
    if (!below || at(work, kind) <= 0) continue;
    const double share =
        above->work > below->work ? std::log(at(work, kind) / below->work) / std::log(above->work / below->work) : 0;
    at(result, kind) = at(work, kind) / (below->rate + share * (above->rate - below->rate));
  }
  return result;
}

// One message per peer. Those within a node and those between nodes use different links at the same time.
double TimeModel::messages(double bytes, int rank, const std::vector<double>& bytes_of_peers) const {
  if (bytes <= 0) return 0;
  double node = 0, wide = 0;
  bool has_node = false, has_wide = false;
  for (int peer = 0; peer < static_cast<int>(bytes_of_peers.size()); ++peer) {
    if (at(bytes_of_peers, peer) <= 0) continue;
    const bool same = peer / network_.ranks_per_node == rank / network_.ranks_per_node;
    (same ? node : wide) += at(bytes_of_peers, peer);
    (same ? has_node : has_wide) = true;
  }
  return std::max(has_node ? network_.node_seconds + node / network_.node_bytes_per_second : 0,
                  has_wide ? network_.wide_seconds + wide / network_.wide_bytes_per_second : 0);
}

void TimeModel::add_times(const AttentionOptions& options, const planning::Plan& plan,
                          const planning::BlockSchedule& schedule, const Work& work, RankForecast& rank) const {
  rank.forward_work = work.forward;
  rank.backward_work = work.backward;
  rank.forward_compute = seconds(work.forward, false);
  if (options.backward) rank.backward_compute = seconds(work.backward, true);

  const int ranks = plan.layout.ranks();
  const auto bytes_of = [&](Traffic traffic) { return static_cast<double>(at(rank.bytes_received, traffic)); };
  ByPeer summaries(to_size(ranks));
  const double all_summaries = static_cast<double>(plan.layout.summaries);
  for (int peer = 0; peer < ranks; ++peer)
    if (peer != plan.rank && all_summaries > 0)
      at(summaries, peer) = static_cast<double>(at(plan.layout.own_summaries, peer));
  const double other_summaries = std::accumulate(summaries.begin(), summaries.end(), 0.0);
  for (double& peer : summaries) peer *= other_summaries > 0 ? bytes_of(Traffic::summaries) / other_summaries : 0;

  const double halo_rows =
      static_cast<double>(std::max<std::int64_t>(1, plan.summary_halo.received_rows + plan.window_halo.received_rows));
  ByPeer halos = halo_bytes(plan.summary_halo, ranks, bytes_of(Traffic::halo) / halo_rows);
  add(halos, halo_bytes(plan.window_halo, ranks, bytes_of(Traffic::halo) / halo_rows));

  const auto& compute = rank.forward_compute;
  const double halo_wire = messages(bytes_of(Traffic::halo), plan.rank, halos);
  const double summary_wire = messages(bytes_of(Traffic::summaries), plan.rank, summaries);
  double block_wire = 0, first_round = 0;
  const double pairs = static_cast<double>(std::max<std::int64_t>(1, schedule.received));
  for (const planning::ExchangeRound& round : schedule.rounds) {
    ByPeer blocks(to_size(ranks));
    for (const planning::PeerRange& range : round.receives)
      at(blocks, range.peer) += static_cast<double>(range.count) / pairs * bytes_of(Traffic::blocks);
    const double wire = messages(static_cast<double>(round.received), plan.rank, blocks);
    if (&round == &schedule.rounds.front()) first_round = wire;
    block_wire += wire;
  }

  // Forward: the window attention runs while halos and summaries travel, the selected attention of a round while the
  // blocks of the next round do.
  const double hidden_behind = at(compute, WorkKind::selected) *
                               static_cast<double>(schedule.rounds.size() > 1 ? schedule.rounds.size() - 1 : 0) /
                               static_cast<double>(std::max<std::size_t>(1, schedule.rounds.size()));
  rank.forward_wire = halo_wire + summary_wire + block_wire;
  rank.forward_seconds = sum(compute) + exposed(halo_wire + summary_wire, at(compute, WorkKind::window)) + first_round +
                         exposed(block_wire - first_round, hidden_behind);
  if (!options.backward) return;

  // Backward: blocks come in and their gradients go out while the selected branch's gradients are computed; those of
  // summaries and halos travel afterwards.
  const auto scaled = [&](double wire, Traffic forward, Traffic backward) {
    return bytes_of(forward) > 0 ? wire * bytes_of(backward) / bytes_of(forward) : 0;
  };
  const double refetch = scaled(block_wire, Traffic::blocks, Traffic::refetched_blocks);
  const double returned = scaled(block_wire, Traffic::blocks, Traffic::block_gradients);
  const double summary_gradients = scaled(summary_wire, Traffic::summaries, Traffic::summary_gradients);
  const double halo_gradients = scaled(halo_wire, Traffic::halo, Traffic::halo_gradients);
  const auto& back = rank.backward_compute;
  double again = 0;  // of the forward's attention, where the branches are recomputed
  if (options.recompute_branches)
    again = at(compute, WorkKind::compressed) + at(compute, WorkKind::selected) + at(compute, WorkKind::window);
  rank.backward_wire = refetch + returned + summary_gradients + halo_gradients;
  const double rounds = static_cast<double>(std::max<std::size_t>(1, schedule.rounds.size()));
  rank.backward_seconds = sum(back) + again +
                          exposed(refetch + returned, at(back, WorkKind::selected) * (rounds - 1) / rounds) +
                          exposed(summary_gradients, at(back, WorkKind::window)) + halo_gradients;
}

}  // namespace cpnsa::forecasts
