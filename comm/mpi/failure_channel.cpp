#include "comm/mpi/failure_channel.hpp"

#include <algorithm>
#include <exception>
#include <utility>

#include "comm/mpi/mpi_call.hpp"

namespace cpnsa::mpi {

using comm::Failure;

FailureChannel::~FailureChannel() {
  int done = 1;
  if (!sending_.empty()) MPI_Testall(static_cast<int>(sending_.size()), sending_.data(), &done, MPI_STATUSES_IGNORE);
  if (done) return;
  // MPI still reads the notice, for ranks that have not looked yet; waiting for them might take forever.
  static_cast<void>(sent_.release());
  for (MPI_Request& request : sending_)
    if (request != MPI_REQUEST_NULL) MPI_Request_free(&request);
}

void FailureChannel::raise_if_failed() {
  if (!failure_) look();
  if (failure_) failure_->raise();
}

void FailureChannel::look() {
  int arrived = 0;
  MPI_Status status;
  check(MPI_Iprobe(MPI_ANY_SOURCE, tag_, handle_, &arrived, &status), "MPI_Iprobe");
  if (!arrived) return;
  Notice notice{};
  check(MPI_Recv(&notice, sizeof notice, MPI_BYTE, status.MPI_SOURCE, tag_, handle_, MPI_STATUS_IGNORE), "MPI_Recv");
  notice.reason.back() = '\0';
  failure_ = Failure{notice.kind, notice.reason.data()};
}

void FailureChannel::fail(Failure failure) noexcept {
  if (failure_) return;
  failure_ = std::move(failure);
  try {
    sent_ = std::make_unique<Notice>();
    sent_->kind = failure_->kind;
    std::copy_n(failure_->reason.data(), std::min(failure_->reason.size(), sent_->reason.size() - 1),
                sent_->reason.data());
    sending_.reserve(static_cast<std::size_t>(size_));
  } catch (const std::exception&) {  // no memory: the other ranks' deadlines must do
    return;
  }
  for (int peer = 0; peer < size_; ++peer) {
    if (peer == rank_) continue;
    MPI_Request request = MPI_REQUEST_NULL;
    // A rank that cannot be told runs into its deadline; the others are told all the same.
    if (MPI_Isend(sent_.get(), sizeof(Notice), MPI_BYTE, peer, tag_, handle_, &request) == MPI_SUCCESS)
      sending_.push_back(request);
  }
}

}  // namespace cpnsa::mpi
