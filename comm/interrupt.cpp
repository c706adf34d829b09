#include "cpnsa/interrupt.hpp"

#include <atomic>
#include <utility>

#include "comm/interrupts.hpp"
#include "cpnsa/error.hpp"
#include "cpnsa/flight_recorder.hpp"

namespace cpnsa {
namespace {

// Lock-free, as what signal handlers touch must be.
std::atomic<bool> interrupt_requested{false};
std::atomic<int> trace_requests{0};
std::atomic<bool (*)()> host_poll{nullptr};
thread_local bool ended_by_host = false;
static_assert(std::atomic<bool>::is_always_lock_free && std::atomic<int>::is_always_lock_free);

}  // namespace

void interrupt() noexcept {
  interrupt_requested = true;
}

bool interrupted() noexcept {
  return interrupt_requested;
}

void clear_interrupt() noexcept {
  interrupt_requested = false;
}

void set_interrupt_poll(bool (*poll)()) noexcept {
  host_poll = poll;
}

void request_trace() noexcept {
  ++trace_requests;
}

namespace comm {

void check_interrupt() {
  if (interrupt_requested || std::exchange(ended_by_host, false)) throw InterruptedError("interrupted");
}

void HostPoll::look() noexcept {
  const auto poll = host_poll.load();
  if (!poll) return;
  const auto now = std::chrono::steady_clock::now();
  if (now - last_ < std::chrono::milliseconds(50)) return;
  last_ = now;
  if (poll()) ended_by_host = true;
}

int traces_requested() noexcept {
  return trace_requests;
}

}  // namespace comm
}  // namespace cpnsa
