#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cpnsa/attention.hpp"
#include "cpnsa/communicator.hpp"

namespace cpnsa::tool {

/// A pair of ranks that sent to each other at the same time.
struct Link {
  int first = 0;
  int second = 0;
  bool same_host = true;
  bool right = true;            ///< whether what arrived is what was sent
  double bytes_per_second = 0;  ///< of one direction, large messages
  double seconds = 0;           ///< of messages of 8 bytes
};

/// A collective of all ranks, by its slowest rank.
struct Collective {
  std::string name;
  double bytes = 0;  ///< that each rank receives
  double seconds = 0;
  bool right = true;
};

/// Exercises every pair: rounds in which each rank has one partner. Returns the same links on every rank. Collective.
std::vector<Link> exercise_links(Communicator& communicator, Communicator& control, Device& device,
                                 const std::vector<std::string>& hosts, std::int64_t bytes, std::int64_t iterations);

/// Exercises all_gather, all_gather_host and barrier. Collective.
std::vector<Collective> exercise_collectives(Communicator& communicator, Communicator& control, Device& device,
                                             std::int64_t bytes, std::int64_t iterations);

}  // namespace cpnsa::tool
