#pragma once

#include <mutex>
#include <optional>

#include "comm/failure.hpp"
#include "comm/operation.hpp"
#include "comm/through_host.hpp"
#include "cpnsa/callbacks/communicator.hpp"

namespace cpnsa::callbacks {

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
  void check() override;
  void abort(std::string_view reason) noexcept override;

 private:
  /// Runs `body`; what it throws is the communicator's failure from then on.
  template <class Body>
  void run(comm::Operation operation, Body body);
  /// Every rank's part to every rank, in host memory; the own part is in its place already.
  void gather(std::byte* all, std::span<const std::size_t> bytes);
  void gather_equal(std::byte* all, std::size_t bytes);
  /// The first failure counts. Tells the other ranks of it.
  void fail(comm::Failure::Kind kind, std::string_view reason) noexcept;

  int rank_;
  int size_;
  Callbacks callbacks_;
  comm::ThroughHost through_host_;
  std::mutex mutex_;  // of failure_, since abort() may come from another thread
  std::optional<comm::Failure> failure_;
};

}  // namespace cpnsa::callbacks
