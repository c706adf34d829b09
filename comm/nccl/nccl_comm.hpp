#pragma once

#include <nccl.h>

#include <chrono>
#include <functional>
#include <string>

#include "cpnsa/nccl/communicator.hpp"

namespace cpnsa::nccl {

/// An NCCL communicator, the library's own or the caller's.
///
/// The library's own is a blocking child of a non-blocking parent. The parent is made in the background, with a
/// deadline. The child enqueues: NCCL starts a thread for each call of a non-blocking communicator, which takes 0.2 ms.
class NcclComm {
 public:
  explicit NcclComm(ncclComm_t borrowed);
  NcclComm(const ncclUniqueId& id, int size, int rank, const Options& options);
  NcclComm(const NcclComm&) = delete;
  NcclComm& operator=(const NcclComm&) = delete;
  ~NcclComm();

  ncclComm_t get() const { return handle_; }
  int rank() const;
  int size() const;
  int device() const;

  /// Throws unless the call succeeded, after waiting for it where the caller's communicator is non-blocking.
  void settle(ncclResult_t status, const char* call, std::chrono::milliseconds deadline) const;
  /// Makes a call that may connect ranks, for which NCCL waits: on a helper thread, so that the wait has a deadline.
  /// `call` must own the objects that it uses.
  void connect(std::function<ncclResult_t()> call, const char* name, std::chrono::milliseconds deadline) const;
  /// Throws if something that was enqueued has failed.
  void check_enqueued() const;
  /// Ends what is enqueued; for handles of the library's own. No other call may follow. Returns after some seconds also
  /// where NCCL does not.
  void abort() noexcept;

 private:
  void make(const ncclUniqueId& id, int size, int rank, const Options& options);
  void finish();

  ncclComm_t handle_ = nullptr;
  ncclComm_t parent_ = nullptr;  ///< of the library's own
  bool owned_;
};

}  // namespace cpnsa::nccl
