#include "tools/run_report.hpp"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <numeric>

namespace cpnsa::tool {
namespace {

using nlohmann::ordered_json;

// One entry per rank.
template <class Value>
ordered_json column(const std::vector<RankReport>& ranks, const Value& value) {
  ordered_json entries = ordered_json::array();
  for (const RankReport& rank : ranks) entries.push_back(value(rank));
  return entries;
}

template <class Array>
ordered_json traffic(const std::vector<RankReport>& ranks, Array Statistics::*bytes) {
  ordered_json object = ordered_json::object();
  for (std::size_t kind = 0; kind < traffic_kinds; ++kind)
    object[std::string(name_of(static_cast<Traffic>(kind)))] =
        column(ranks, [&](const RankReport& rank) { return (rank.statistics.*bytes)[kind]; });
  return object;
}

double mebibytes(std::int64_t bytes) {
  return static_cast<double>(bytes) / (1 << 20);
}

}  // namespace

std::string RunReport::json() const {
  ordered_json stats;
  stats["ranks"] = ranks.size();
  stats["tokens"] = tokens;
  stats["device"] = device;
  stats["transport"] = transport;
  stats["partition"] = partition;
  stats["exchange"] = std::string(name_of(ranks.front().statistics.exchange));
  stats["dtype"] = dtype;
  stats["hardware"] = hardware;
  stats["backward"] = backward;
  stats["tokens_owned"] = column(ranks, [](const RankReport& rank) { return rank.tokens; });
  stats["bytes_received"] = traffic(ranks, &Statistics::bytes_received);
  stats["bytes_predicted"] = traffic(ranks, &Statistics::bytes_predicted);
  stats["blocks_needed"] = column(ranks, [](const RankReport& rank) { return rank.statistics.blocks_needed; });
  stats["blocks_fetched"] = column(ranks, [](const RankReport& rank) { return rank.statistics.blocks_fetched; });
  stats["workspace_bytes"] = column(ranks, [](const RankReport& rank) { return rank.statistics.workspace_bytes; });

  ordered_json& seconds = stats["seconds"] = ordered_json::object();
  for (std::size_t stage = 0; stage < stage_count; ++stage)
    seconds[std::string(name_of(static_cast<Stage>(stage)))] =
        column(ranks, [&](const RankReport& rank) { return rank.statistics.seconds[stage]; });
  seconds["forward"] = column(ranks, [](const RankReport& rank) { return rank.forward_seconds; });
  if (backward) seconds["backward"] = column(ranks, [](const RankReport& rank) { return rank.backward_seconds; });
  return stats.dump(2) + "\n";
}

std::string RunReport::table() const {
  std::string text = fmt::format(
      "# {} tokens, {} rank{} ({}), {} ({}), {}, partition {}, exchange {}\n"
      "# {:>4} {:>10} {:>11} {:>12} {:>13} {:>14} {:>15} {:>13}\n",
      tokens, ranks.size(), ranks.size() == 1 ? "" : "s", transport, device, hardware, dtype, partition,
      name_of(ranks.front().statistics.exchange), "rank", "tokens", "forward s", "backward s", "received MiB",
      "blocks needed", "blocks fetched", "workspace MiB");
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    const Statistics& statistics = ranks[r].statistics;
    const std::int64_t received =
        std::accumulate(statistics.bytes_received.begin(), statistics.bytes_received.end(), std::int64_t{0});
    text +=
        fmt::format("  {:>4} {:>10} {:>11.4f} {:>12} {:>13.2f} {:>14} {:>15} {:>13.2f}\n", r, ranks[r].tokens,
                    ranks[r].forward_seconds,
                    backward ? fmt::format("{:.4f}", ranks[r].backward_seconds) : std::string("-"), mebibytes(received),
                    statistics.blocks_needed, statistics.blocks_fetched, mebibytes(statistics.workspace_bytes));
  }
  return text;
}

}  // namespace cpnsa::tool
