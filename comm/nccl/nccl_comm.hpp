#pragma once

#include <nccl.h>

#include <chrono>
#include <functional>
#include <string>

#include "cpnsa/nccl/communicator.hpp"

namespace cpnsa::nccl {

/// An NCCL communicator, the library's own or the caller's. The library's own are non-blocking: their calls go on in
/// the background, and settle() waits for the end.
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

  /// Throws unless the call succeeded, after waiting for it where it goes on in the background.
  void settle(ncclResult_t status, const char* call, std::chrono::milliseconds deadline) const;
  /// Throws if something that was enqueued has failed.
  void check_enqueued() const;
  /// Ends what is enqueued; for handles of the library's own. No other call may follow. Returns after some seconds also
  /// where NCCL does not.
  void abort() noexcept;

 private:
  void finish();

  ncclComm_t handle_ = nullptr;
  bool owned_;
};

}  // namespace cpnsa::nccl
