#pragma once

#include <functional>
#include <optional>
#include <set>
#include <vector>

#include "comm/collective_guard.hpp"
#include "comm/nccl/nccl_comm.hpp"
#include "comm/nccl/pinned_staging.hpp"
#include "cpnsa/nccl/communicator.hpp"

namespace cpnsa::nccl {

/// Tells the other ranks by the control communicator, and aborts an NCCL communicator of the library's own: without it
/// the streams would never drain, whose work waits for other ranks.
class NcclGuard final : public comm::CollectiveGuard {
 public:
  NcclGuard(const Communicator& owner, NcclComm& comm, Communicator* control)
      : CollectiveGuard(owner), comm_(comm), control_(control) {}

 private:
  std::optional<comm::Failure> look() override;
  void tell(const comm::Failure& failure) noexcept override;
  void release() noexcept override { comm_.abort(); }

  NcclComm& comm_;
  Communicator* control_;
};

/// One rank with a GPU. Device memory is moved by NCCL, enqueued. Host memory is moved by the control communicator if
/// there is one, and by way of the device otherwise.
class NcclCommunicator final : public Communicator {
 public:
  explicit NcclCommunicator(ncclComm_t borrowed);
  NcclCommunicator(const ncclUniqueId& id, int size, int rank, const Options& options, Communicator* control);
  ~NcclCommunicator() override;

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
  std::vector<int> silent_ranks(std::chrono::milliseconds limit) override;
  void abort(std::string_view reason) noexcept override { guard_.abort(reason); }

 private:
  void settle(ncclResult_t status, const char* call) const { comm_.settle(status, call, deadline_); }
  /// Makes an NCCL call that enqueues. `is_first`: it may connect ranks; `call` owns what it refers to.
  template <class Call>
  void make_call(const char* name, bool is_first, const Call& call) {
    if (is_first)
      comm_.connect(call, name, deadline_);
    else
      settle(call(), name);
  }
  void gather_equal(const void* own, void* all, std::size_t bytes, cudaStream_t stream);
  /// Enqueues this rank's messages.
  void enqueue(std::span<const SendMessage> sends, std::span<const ReceiveMessage> receives, cudaStream_t stream);
  /// Waits on the host until the stream has drained.
  void drain(std::string_view call, cudaStream_t stream);
  /// The deadline is over: throws the error that names the ranks at fault as far as the transport can know.
  [[noreturn]] void throw_late(std::string_view call);
  void gather_through_device(std::string_view call, const void* own, void* all, std::size_t bytes);

  NcclComm comm_;
  int rank_;
  int size_;
  int device_;
  Communicator* control_ = nullptr;
  std::chrono::milliseconds deadline_ = initial_deadline();
  NcclGuard guard_;
  PinnedStaging staging_;
  std::set<int> sent_to_, received_from_;  ///< the peers that are connected by a message
  std::set<std::size_t> gathered_;         ///< sizes of the all-gathers so far: NCCL's algorithm depends on the size
};

}  // namespace cpnsa::nccl
