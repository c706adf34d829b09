#pragma once

#include <mpi.h>

#include <array>
#include <memory>
#include <optional>
#include <vector>

#include "comm/failure.hpp"

namespace cpnsa::mpi {

/// Tells every rank, beside the messages of calls, that the communicator has failed. Only the first failure that a rank
/// learns of counts.
class FailureChannel {
 public:
  /// `handle` stays the caller's.
  FailureChannel(MPI_Comm handle, int tag, int rank, int size) : handle_(handle), tag_(tag), rank_(rank), size_(size) {}
  FailureChannel(const FailureChannel&) = delete;
  FailureChannel& operator=(const FailureChannel&) = delete;
  ~FailureChannel();

  /// Throws the failure if there is one by now.
  void raise_if_failed();
  bool failed() const { return failure_.has_value(); }

  /// Tells every rank, unless there is a failure already. Never waits.
  void fail(comm::Failure failure) noexcept;

 private:
  struct Notice {
    comm::Failure::Kind kind;
    std::array<char, 1023> reason;  // ends with a zero
  };

  void look();

  MPI_Comm handle_;
  int tag_;
  int rank_;
  int size_;
  std::optional<comm::Failure> failure_;
  std::unique_ptr<Notice> sent_;
  std::vector<MPI_Request> sending_;
};

}  // namespace cpnsa::mpi
