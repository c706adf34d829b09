#include "cpnsa/interrupt.hpp"

#include <atomic>

#include "comm/interrupts.hpp"
#include "cpnsa/error.hpp"
#include "cpnsa/flight_recorder.hpp"

namespace cpnsa {
namespace {

// Lock-free, as what signal handlers touch must be.
std::atomic<bool> interrupt_requested{false};
std::atomic<int> trace_requests{0};
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

void request_trace() noexcept {
  ++trace_requests;
}

namespace comm {

void check_interrupt() {
  if (interrupt_requested) throw InterruptedError("interrupted");
}

int traces_requested() noexcept {
  return trace_requests;
}

}  // namespace comm
}  // namespace cpnsa
