#pragma once

#include <nccl.h>

#include <chrono>
#include <functional>
#include <string>

#include "cpnsa/nccl/communicator.hpp"

namespace cpnsa::nccl {

/// An NCCL communicator, the library's own or the caller's. Those of its own do not block: their calls may go on in the
/// background, and settle() waits for that.
class Handle {
 public:
  explicit Handle(ncclComm_t borrowed);
  Handle(const ncclUniqueId& id, int size, int rank, const Options& options);
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle();

  ncclComm_t get() const { return handle_; }
  bool owned() const { return owned_; }
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
