#pragma once

#include <array>
#include <deque>
#include <exception>
#include <utility>
#include <vector>

#include "cpnsa/device_memory.hpp"
#include "cpnsa/step_record.hpp"
#include "src/planning/at.hpp"

namespace cpnsa {

/// Measures the seconds of each stage by events around each of its stretches, and names the stages for profilers. When
/// disabled it measures nothing; when enabled it creates its events in the first step and reuses them.
class StageTimer {
  struct Stretch;

 public:
  StageTimer(Device& device, bool enabled) : device_(device), enabled_(enabled), origin_(device) {}

  /// Times from construction to destruction, on one stream.
  class Scope {
   public:
    Scope(StageTimer& timer, Stage stage, Stream stream) : timer_(timer), stream_(stream) {
      if (timer_.enabled_) begin(stage);
      timer_.device_.begin_range(name_of(stage).data());
    }
    ~Scope() noexcept(false) {  // recording may fail; a scope never outlives an exception it would meet
      timer_.device_.end_range();
      if (!stretch_) return;
      timer_.open_ = outer_;
      if (std::uncaught_exceptions() == 0) timer_.device_.record(stretch_->end.get(), stream_);
    }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    void begin(Stage stage) {
      if (timer_.used_ == timer_.stretches_.size()) timer_.stretches_.emplace_back(timer_.device_);
      stretch_ = &timer_.stretches_[timer_.used_++];
      stretch_->stage = stage, stretch_->bytes_received = 0;
      timer_.device_.record(stretch_->begin.get(), stream_);
      outer_ = std::exchange(timer_.open_, stretch_);
    }

    StageTimer& timer_;
    Stream stream_;
    Stretch* stretch_ = nullptr;
    Stretch* outer_ = nullptr;
  };

  /// Begins a step on `stream`: forgets the one before.
  void start(Stream stream) {
    used_ = 0;
    if (enabled_) device_.record(origin_.get(), stream);
  }

  /// Bytes that belong to the innermost scope.
  void count_received(std::int64_t bytes) {
    if (open_) open_->bytes_received += bytes;
  }

  /// The stages' sums; every stretch must have been reached.
  std::array<double, stage_count> seconds() const {
    std::array<double, stage_count> sums{};
    for (std::size_t i = 0; i < used_; ++i)
      at(sums, stretches_[i].stage) += device_.seconds_between(stretches_[i].begin.get(), stretches_[i].end.get());
    return sums;
  }

  /// The stretches of the step; every one must have been reached.
  std::vector<StageSpan> spans() const {
    std::vector<StageSpan> spans;
    for (std::size_t i = 0; i < used_; ++i) {
      const Stretch& stretch = stretches_[i];
      spans.push_back({stretch.stage, device_.seconds_between(origin_.get(), stretch.begin.get()),
                       device_.seconds_between(origin_.get(), stretch.end.get()), stretch.bytes_received});
    }
    return spans;
  }

 private:
  struct Stretch {
    explicit Stretch(Device& device) : begin(device), end(device) {}
    OwnedEvent begin;
    OwnedEvent end;
    Stage stage{};
    std::int64_t bytes_received = 0;
  };

  Device& device_;
  bool enabled_;
  OwnedEvent origin_;
  std::deque<Stretch> stretches_;  // a deque: scopes point into it while it grows
  std::size_t used_ = 0;
  Stretch* open_ = nullptr;
};

}  // namespace cpnsa
