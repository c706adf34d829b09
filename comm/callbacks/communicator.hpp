#pragma once

#include "comm/collective_guard.hpp"
#include "comm/host_staging.hpp"
#include "cpnsa/callbacks/communicator.hpp"

namespace cpnsa::callbacks {

/// Tells the other ranks by the caller's abort.
class CallbackGuard final : public comm::CollectiveGuard {
 public:
  CallbackGuard(const Communicator& owner, const Callbacks& callbacks)
      : CollectiveGuard(owner), callbacks_(callbacks) {}

 private:
  void tell(const comm::Failure& failure) noexcept override;

  const Callbacks& callbacks_;
};

/// One rank; moves everything in host memory by the caller's functions.
class CallbackCommunicator final : public Communicator {
 public:
  CallbackCommunicator(int rank, int size, Callbacks callbacks);

  std::string_view name() const override { return "callbacks"; }
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  void set_deadline(std::chrono::milliseconds deadline) override;

  void exchange(std::span<const SendMessage> sends, std::span<const ReceiveMessage> receives, Device& device,
                Stream stream) override;
  void all_gather(const void* own, void* all, std::span<const std::size_t> bytes, Device& device,
                  Stream stream) override;
  void all_gather_host(const void* own, void* all, std::size_t bytes) override;
  void barrier() override;
  void check() override { guard_.check(); }
  void abort(std::string_view reason) noexcept override { guard_.abort(reason); }

 private:
  /// Calls a callback; what it throws but the library's own types becomes a CommunicationError.
  template <class Callback, class... Arguments>
  void call(const Callback& callback, Arguments... arguments) const;
  /// Every rank's part to every rank, in host memory; this rank's part is in place already.
  void gather(std::byte* all, std::span<const std::size_t> bytes);
  void gather_equal(std::byte* all, std::size_t bytes);

  int rank_;
  int size_;
  Callbacks callbacks_;
  CallbackGuard guard_;
  comm::HostStaging staging_;
};

}  // namespace cpnsa::callbacks
