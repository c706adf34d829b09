#pragma once

#include <functional>
#include <utility>

#include "tests/support/wrapped_communicator.hpp"

namespace cpnsa::test {

/// Calls a function of the test's before an operation of the communicator, e.g. to throw or to end the process.
class FaultyCommunicator final : public WrappedCommunicator {
 public:
  FaultyCommunicator(Communicator& inner, std::function<void()> fail)
      : WrappedCommunicator(inner), fail_(std::move(fail)) {}

  /// The `operations`-th operation from now on is the one.
  void fail_in(int operations) { left_ = operations; }

  void exchange(std::span<const SendMessage> sends, std::span<const ReceiveMessage> receives, Device& device,
                Stream stream) override {
    count();
    WrappedCommunicator::exchange(sends, receives, device, stream);
  }
  void all_gather(const void* own, void* all, std::span<const std::size_t> bytes, Device& device,
                  Stream stream) override {
    count();
    WrappedCommunicator::all_gather(own, all, bytes, device, stream);
  }
  void all_gather_host(const void* own, void* all, std::size_t bytes) override {
    count();
    WrappedCommunicator::all_gather_host(own, all, bytes);
  }

 private:
  void count() {
    if (left_ > 0 && --left_ == 0) fail_();
  }

  std::function<void()> fail_;
  int left_ = 0;
};

}  // namespace cpnsa::test
