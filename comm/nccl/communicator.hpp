#pragma once

#include <functional>
#include <optional>

#include "comm/failure.hpp"
#include "comm/nccl/handle.hpp"
#include "comm/nccl/host_gather.hpp"
#include "comm/operation.hpp"
#include "cpnsa/nccl/communicator.hpp"

namespace cpnsa::nccl {

/// One rank with a card. What is in its memory moves with NCCL, enqueued; what is in host memory moves over the control
/// communicator where there is one, and through the card where there is none.
class NcclCommunicator final : public Communicator {
 public:
  explicit NcclCommunicator(ncclComm_t borrowed);
  NcclCommunicator(const ncclUniqueId& id, int size, int rank, const Options& options, Communicator* control);

  std::string_view name() const override { return "nccl"; }
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  void set_deadline(std::chrono::milliseconds deadline) override;

  void check_device(Device& device) const override;
  void exchange(std::span<const SendMessage> sends, std::span<const ReceiveMessage> receives, Device& device,
                Stream stream) override;
  void all_gather(const void* own, void* all, std::span<const std::size_t> bytes, Device& device,
                  Stream stream) override;
  void all_gather_host(const void* own, void* all, std::size_t bytes) override;
  void barrier() override;
  void wait(Device& device, Stream stream) override;
  void check() override;
  void abort(std::string_view reason) noexcept override;

 private:
  /// Runs `body` unless there is a failure; when it throws, that is one.
  template <class Body>
  void run(std::string_view call, Body body);
  void settle(ncclResult_t status, const char* call) const { handle_.settle(status, call, deadline_); }
  /// Enqueues messages, of which each rank knows those that concern it.
  void enqueue(std::span<const SendMessage> sends, std::span<const ReceiveMessage> receives, cudaStream_t stream);
  /// Waits on the host for what is enqueued.
  void drain(std::string_view call, cudaStream_t stream);
  void gather_through_card(std::string_view call, const void* own, void* all, std::size_t bytes);
  void fail(comm::Failure::Kind kind, std::string_view reason) noexcept;

  Handle handle_;
  int rank_;
  int size_;
  int device_;
  Communicator* control_ = nullptr;
  std::chrono::milliseconds deadline_ = default_deadline;
  std::optional<comm::Failure> failure_;
  HostGather host_gather_;
};

}  // namespace cpnsa::nccl
