#pragma once

#include <atomic>
#include <mutex>
#include <thread>

#include "cpnsa/error.hpp"

namespace cpnsa::python {

/// Lets one thread at a time into a layer. The thread that is inside may come back before it has left: a Python
/// callback of a communicator, or a signal handler that runs in one, calls the layer again. A mutex would then wait for
/// ever.
class CallLock {
 public:
  /// Throws ArgumentError where this thread is inside already.
  void lock() {
    if (owner_.load() == std::this_thread::get_id())
      throw ArgumentError(
          "attention: found a call from within a step of the same layer (a callback or a signal handler), expected it "
          "after the step");
    mutex_.lock();
    owner_.store(std::this_thread::get_id());
  }
  void unlock() {
    owner_.store(std::thread::id());
    mutex_.unlock();
  }

 private:
  std::mutex mutex_;
  std::atomic<std::thread::id> owner_{};
};

}  // namespace cpnsa::python
