#pragma once

#include <chrono>
#include <thread>

#include "comm/deadline.hpp"
#include "comm/interrupts.hpp"
#include "cpnsa/flight_recorder.hpp"

namespace cpnsa::comm {

/// Backs off between polls: yields first, because ranks may outnumber cores, then sleeps.
class Backoff {
 public:
  explicit Backoff(int yields = 200) : yields_(yields) {}

  void pause() {
    if (++polls_ < yields_)
      std::this_thread::yield();
    else
      std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  void reset() { polls_ = 0; }

 private:
  int yields_;
  int polls_ = 0;
};

/// One wait for other ranks that polls.
class Wait {
 public:
  Wait(FlightRecorder& recorder, std::chrono::milliseconds limit, int yields = 200)
      : recorder_(recorder), deadline_(limit), backoff_(yields) {}

  /// Pauses until the next poll. Returns false once the limit is over; throws InterruptedError after interrupt().
  bool pause() {
    host_.look();
    check_interrupt();
    recorder_.write_if_requested();
    if (deadline_.is_over()) return false;
    backoff_.pause();
    return true;
  }
  /// Something has arrived: polls quickly again.
  void reset() { backoff_.reset(); }

 private:
  FlightRecorder& recorder_;
  Deadline deadline_;
  Backoff backoff_;
  HostPoll host_;
};

}  // namespace cpnsa::comm
