#pragma once

#include <algorithm>
#include <chrono>
#include <string>

namespace cpnsa::comm {

/// Throws ArgumentError unless it is 1 ms at least.
void check_deadline(std::chrono::milliseconds limit);

/// "150 ms"
std::string text_of(std::chrono::milliseconds time);

/// A point in time to which a wait may last.
class Deadline {
 public:
  using Clock = std::chrono::steady_clock;

  /// Limits of ten years and more never end: added to the present they could overflow.
  explicit Deadline(std::chrono::milliseconds limit)
      : end_(limit >= forever ? Clock::time_point::max() : Clock::now() + limit) {}

  bool is_over() const { return Clock::now() > end_; }
  /// A wait until here ends by the deadline and at most `step` from now.
  Clock::time_point end_of_step(std::chrono::milliseconds step) const { return std::min(end_, Clock::now() + step); }

 private:
  static constexpr std::chrono::hours forever{24 * 365 * 10};

  Clock::time_point end_;
};

}  // namespace cpnsa::comm
