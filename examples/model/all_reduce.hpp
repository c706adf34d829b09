#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cpnsa/communicator.hpp"

namespace model {

/// Sums over the ranks, in the order of the ranks: all ranks get the same bits, in every run.
class AllReduce {
 public:
  explicit AllReduce(cpnsa::Communicator& communicator) : communicator_(communicator) {}

  /// Returns the bytes that this rank received.
  std::int64_t sum(std::span<double> values);

 private:
  cpnsa::Communicator& communicator_;
  std::vector<double> all_;
};

}  // namespace model
