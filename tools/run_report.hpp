#pragma once

#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "cpnsa/attention.hpp"

namespace cpnsa::tool {

/// One rank's report of a run; gathered as bytes.
struct RankReport {
  Statistics statistics;
  std::int64_t tokens = 0;
  double forward_seconds = 0;
  double backward_seconds = 0;
};
static_assert(std::is_trivially_copyable_v<RankReport>);

/// A run as a whole.
struct RunReport {
  std::int64_t tokens = 0;
  std::string device;     ///< "cpu", "cuda"
  std::string hardware;   ///< for people
  std::string transport;  ///< "threads", "mpi", "nccl"
  std::string partition;
  std::string dtype;
  bool backward = false;
  std::vector<RankReport> ranks;

  std::string json() const;   ///< the text of stats.json
  std::string table() const;  ///< for people: one row per rank
};

}  // namespace cpnsa::tool
