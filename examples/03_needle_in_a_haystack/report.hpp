#pragma once

#include <chrono>
#include <cstdint>

#include "curriculum.hpp"
#include "grid.hpp"

namespace needle {

/// The files in the folder --out.
inline constexpr const char *numbers_name = "needle.csv", *picture_name = "needle.svg";

/// Prints to standard output the heading of each lesson, the mean loss of every tenth part of it, and the progress of
/// the evaluation; at most one line of each kind per second, except for the last.
class Progress {
 public:
  void step(const Lesson& lesson, std::int64_t step, Reach reach, double loss);
  void sequence(std::int64_t length, std::int64_t sequence, std::int64_t sequences);

 private:
  using Clock = std::chrono::steady_clock;

  struct Mean {
    double sum = 0;
    std::int64_t count = 0;
  };

  Mean all_, summaries_;
  int lessons_ = 0;
  Clock::time_point last_ = Clock::now();
};

void print_summary(const Options& options, const Grid& grid, double training_seconds, double evaluation_seconds);

}  // namespace needle
