#pragma once

#include <span>
#include <vector>

#include "cpnsa/communicator.hpp"

namespace language_model {

/// Sums over the ranks, in the order of the ranks: all ranks get the same bits, in every run.
class AllReduce {
 public:
  explicit AllReduce(cpnsa::Communicator& communicator) : communicator_(communicator) {}

  void sum(std::span<double> values);

 private:
  cpnsa::Communicator& communicator_;
  std::vector<double> all_;
};

}  // namespace language_model
