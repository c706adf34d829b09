#pragma once

#include <array>
#include <deque>
#include <exception>

#include "cpnsa/attention.hpp"
#include "cpnsa/device_memory.hpp"
#include "src/planning/at.hpp"

namespace cpnsa {

/// Measures the seconds of each stage by events around each of its stretches. When disabled it does nothing; when
/// enabled it creates its events in the first step and reuses them.
class StageTimer {
  struct Stretch;

 public:
  StageTimer(Device& device, bool enabled) : device_(device), enabled_(enabled) {}

  /// Times from construction to destruction, on one stream.
  class Scope {
   public:
    Scope(StageTimer& timer, Stage stage, Stream stream) : timer_(timer), stream_(stream) {
      if (!timer_.enabled_) return;
      if (timer_.used_ == timer_.stretches_.size()) timer_.stretches_.emplace_back(timer_.device_);
      stretch_ = &timer_.stretches_[timer_.used_++];
      stretch_->stage = stage;
      timer_.device_.record(stretch_->begin.get(), stream_);
    }
    ~Scope() noexcept(false) {  // recording may fail; a scope never outlives an exception it would meet
      if (stretch_ && std::uncaught_exceptions() == 0) timer_.device_.record(stretch_->end.get(), stream_);
    }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    StageTimer& timer_;
    Stream stream_;
    Stretch* stretch_ = nullptr;
  };

  void reset() { used_ = 0; }

  /// The stages' sums; every stretch must have been reached.
  std::array<double, stage_count> seconds() const {
    std::array<double, stage_count> sums{};
    for (std::size_t i = 0; i < used_; ++i)
      at(sums, stretches_[i].stage) += device_.seconds_between(stretches_[i].begin.get(), stretches_[i].end.get());
    return sums;
  }

 private:
  struct Stretch {
    explicit Stretch(Device& device) : begin(device), end(device) {}
    OwnedEvent begin;
    OwnedEvent end;
    Stage stage{};
  };

  Device& device_;
  bool enabled_;
  std::deque<Stretch> stretches_;  // a deque: scopes point into it while it grows
  std::size_t used_ = 0;
};

}  // namespace cpnsa
