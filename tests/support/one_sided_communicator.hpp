#pragma once

#include <functional>
#include <utility>
#include <vector>

#include "cpnsa/one_sided.hpp"
#include "tests/support/wrapped_communicator.hpp"

namespace cpnsa::test {

/// Calls a function of the test's before each one-sided operation, e.g. to wait or to throw.
class OneSidedCommunicator final : public WrappedCommunicator, private OneSided {
 public:
  OneSidedCommunicator(Communicator& inner, std::function<void()> before)
      : WrappedCommunicator(inner), inner_(*inner.one_sided()), before_(std::move(before)) {}

  OneSided* one_sided() override { return this; }
  using WrappedCommunicator::barrier;

 private:
  std::vector<const std::byte*> open(const void* own) override {
    before_();
    return inner_.open(own);
  }
  void barrier(Device& device, Stream stream) override {
    before_();
    inner_.barrier(device, stream);
  }
  void read(Device& device, Stream stream, const std::function<void()>& enqueue) override {
    before_();
    inner_.read(device, stream, enqueue);
  }
  void close(Device& device, Stream stream) noexcept override { inner_.close(device, stream); }

  OneSided& inner_;
  std::function<void()> before_;
};

}  // namespace cpnsa::test
