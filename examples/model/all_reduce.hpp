#pragma once

#include <cstdint>
#include <span>

#include "cpnsa/communicator.hpp"
#include "examples/model/tensor.hpp"

namespace model {

/// Sums over the ranks in rank order: all ranks get the same bits in every run. Collective; returns the number of bytes
/// that this rank received.
class AllReduce {
 public:
  AllReduce(Operations& operations, cpnsa::Communicator& communicator)
      : operations_(operations), communicator_(communicator) {}

  /// Sums a wide one-dimensional array in device memory: each rank sums one part of it and gathers the other parts.
  std::int64_t sum(const TensorView& values);

  std::int64_t sum_on_host(std::span<double> values);

 private:
  Operations& operations_;
  cpnsa::Communicator& communicator_;
};

}  // namespace model
