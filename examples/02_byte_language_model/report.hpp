#pragma once

#include <chrono>
#include <cstdint>

#include "curve.hpp"
#include "options.hpp"
#include "text.hpp"
#include "trainer.hpp"

namespace language_model {

/// Prints a line to standard output for the first step, for every twentieth part of the steps, and for the last step:
/// the means over the steps since the previous line.
class Progress {
 public:
  explicit Progress(const Options& options) : options_(options) {}

  void step(std::int64_t index, const StepReport& report);

 private:
  using Clock = std::chrono::steady_clock;

  const Options& options_;
  StepReport sum_;
  std::int64_t steps_ = 0;
  Clock::time_point begin_ = Clock::now();
};

/// `peak_bytes` of the device are this rank's.
void print_summary(const Options& options, const Text& text, const Curve& curve, double seconds,
                   std::size_t peak_bytes);

}  // namespace language_model
