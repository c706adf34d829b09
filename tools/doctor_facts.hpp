#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "cpnsa/communicator.hpp"
#include "tools/execution.hpp"

namespace cpnsa::tool {

struct Interface {
  std::string name;
  std::int64_t mtu = 0;
  std::int64_t megabits = 0;  ///< 0 where the system does not say
};

/// The facts about a rank that are compared with those of other ranks.
struct RankFacts {
  std::string host;
  std::string version;
  std::string commit;
  std::string backends;
  std::map<std::string, std::string> libraries;  ///< the versions that are loaded
  std::string transport;
  std::string gpu;  ///< its model, "" on the CPU
  std::string gpu_uuid;
  std::int64_t gpu_memory_bytes = 0;
  std::int64_t gpu_free_bytes = 0;
  std::int64_t gpu_clock_mhz = 0;
  std::int64_t gpu_capability = 0;
  std::string cpu;
  std::int64_t cores = 0;               ///< that this process may run on
  std::int64_t open_files = 0;          ///< limit
  std::int64_t locked_bytes = 0;        ///< limit, -1: none
  std::int64_t shared_memory_free = 0;  ///< bytes of /dev/shm, -1 where there is none
  bool has_infiniband = false;
  double clock_seconds = 0;                        ///< behind the clock of rank 0
  std::vector<Interface> interfaces;               ///< that are up, without loopback
  std::map<std::string, std::string> environment;  ///< the variables that must be equal on all ranks
};

/// The facts of all ranks, by rank. Collective.
std::vector<RankFacts> facts_of_ranks(Communicator& control, Execution& execution);

nlohmann::ordered_json json_of(const RankFacts& facts);

}  // namespace cpnsa::tool
