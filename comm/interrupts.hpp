#pragma once

#include <chrono>

namespace cpnsa::comm {

/// Throws InterruptedError after interrupt(), or once the host has ended this thread's wait.
void check_interrupt();

/// Asks the host of set_interrupt_poll() while a thread waits: after 50 ms, and every 50 ms from then on, so that short
/// waits cost it nothing. No lock may be held, because the host may wait for one of its own.
class HostPoll {
 public:
  void look() noexcept;

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

/// How often request_trace() has been called.
int traces_requested() noexcept;

}  // namespace cpnsa::comm
