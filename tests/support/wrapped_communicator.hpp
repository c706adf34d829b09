#pragma once

#include "cpnsa/communicator.hpp"

namespace cpnsa::test {

/// Forwards every call to another communicator. Tests derive from it to observe calls or to make them fail.
class WrappedCommunicator : public Communicator {
 public:
  explicit WrappedCommunicator(Communicator& inner) : inner_(inner) { share(inner); }

  std::string_view name() const override { return inner_.name(); }
  int rank() const override { return inner_.rank(); }
  int size() const override { return inner_.size(); }
  void set_deadline(std::chrono::milliseconds deadline) override { inner_.set_deadline(deadline); }
  void check_device(Device& device) const override { inner_.check_device(device); }
  void exchange(std::span<const SendMessage> sends, std::span<const ReceiveMessage> receives, Device& device,
                Stream stream) override {
    inner_.exchange(sends, receives, device, stream);
  }
  void all_gather(const void* own, void* all, std::span<const std::size_t> bytes, Device& device,
                  Stream stream) override {
    inner_.all_gather(own, all, bytes, device, stream);
  }
  void all_gather_host(const void* own, void* all, std::size_t bytes) override {
    inner_.all_gather_host(own, all, bytes);
  }
  void barrier() override { inner_.barrier(); }
  OneSided* one_sided() override { return inner_.one_sided(); }
  void wait(Device& device, Stream stream) override { inner_.wait(device, stream); }
  void check() override { inner_.check(); }
  void abort(std::string_view reason) noexcept override { inner_.abort(reason); }

 private:
  Communicator& inner_;
};

}  // namespace cpnsa::test
