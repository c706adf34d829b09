#pragma once

#include <cstdint>

#include "examples/model/parameters.hpp"

namespace model {

/// AdamW with a warm-up, a cosine decay to a tenth of the rate, and gradients clipped to norm 1. Every rank runs it on
/// the gradients that are already summed over the ranks.
class AdamW {
 public:
  /// Call it after Parameters::upload().
  AdamW(Parameters& parameters, double learning_rate, std::int64_t steps);

  void step();

 private:
  double rate() const;

  Parameters& parameters_;
  double learning_rate_;
  std::int64_t steps_;
  std::int64_t done_ = 0;
  Tensor mean_, square_;
};

}  // namespace model
