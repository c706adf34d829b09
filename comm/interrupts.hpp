#pragma once

namespace cpnsa::comm {

/// Throws InterruptedError after interrupt().
void check_interrupt();

/// How often request_trace() has been called.
int traces_requested() noexcept;

}  // namespace cpnsa::comm
