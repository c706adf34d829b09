#pragma once

#include <cstdint>
#include <span>

#include "cpnsa/communicator.hpp"
#include "examples/model/tensor.hpp"

namespace model {

/// Sums over the ranks, in the order of the ranks: all ranks get the same bits, in every run. Collective; the result is
/// the number of bytes that this rank received.
class AllReduce {
 public:
  AllReduce(Operations& operations, cpnsa::Communicator& communicator)
      : operations_(operations), communicator_(communicator) {}

  /// A wide array of one dimension in the device's memory: each rank adds up a part of it, and gathers the others'.
  std::int64_t sum(const TensorView& values);

  std::int64_t sum_on_host(std::span<double> values);

 private:
  Operations& operations_;
  cpnsa::Communicator& communicator_;
};

}  // namespace model
