#include "comm/mpi/failure_channel.hpp"

#include <algorithm>
#include <exception>
#include <set>
#include <utility>

#include "comm/mpi/mpi_call.hpp"
#include "comm/wait.hpp"

namespace cpnsa::mpi {

using comm::Failure;

FailureChannel::~FailureChannel() {
  int done = 1;
  if (!sending_.empty()) MPI_Testall(static_cast<int>(sending_.size()), sending_.data(), &done, MPI_STATUSES_IGNORE);
  if (done) return;
  // MPI still reads the notices, for ranks that have not looked yet; waiting for them might take forever.
  for (std::unique_ptr<Notice>& notice : sent_) static_cast<void>(notice.release());
  for (MPI_Request& request : sending_)
    if (request != MPI_REQUEST_NULL) MPI_Request_free(&request);
}

std::optional<Failure> FailureChannel::look() {
  for (;;) {
    int arrived = 0;
    MPI_Status status;
    mpi::check(MPI_Iprobe(MPI_ANY_SOURCE, tag_, handle_, &arrived, &status), "MPI_Iprobe");
    if (!arrived) return std::nullopt;
    Notice notice{};
    mpi::check(MPI_Recv(&notice, sizeof notice, MPI_BYTE, status.MPI_SOURCE, tag_, handle_, MPI_STATUS_IGNORE),
               "MPI_Recv");
    switch (notice.subject) {
      case Subject::question: answer(status.MPI_SOURCE); break;
      case Subject::answer: answers_.emplace_back(status.MPI_SOURCE, notice); break;
      case Subject::failure: notice.reason.back() = '\0'; return Failure{notice.kind, notice.reason.data()};
    }
  }
}

void FailureChannel::tell(const Failure& failure) noexcept {
  Notice notice{};
  notice.subject = Subject::failure;
  // An interrupt is of one process; to the others it is a rank that gave up.
  notice.kind = failure.kind == Failure::Kind::interrupted ? Failure::Kind::aborted : failure.kind;
  std::copy_n(failure.reason.data(), std::min(failure.reason.size(), notice.reason.size() - 1), notice.reason.data());
  for (int peer = 0; peer < size_; ++peer)
    if (peer != rank_) send(notice, peer);
}

// A rank that cannot be told runs into its deadline; the others are told all the same.
void FailureChannel::send(const Notice& notice, int peer) noexcept {
  try {
    sending_.reserve(sending_.size() + 1);
    sent_.push_back(std::make_unique<Notice>(notice));
  } catch (const std::exception&) {  // no memory
    return;
  }
  MPI_Request request = MPI_REQUEST_NULL;
  if (MPI_Isend(sent_.back().get(), sizeof(Notice), MPI_BYTE, peer, tag_, handle_, &request) == MPI_SUCCESS)
    sending_.push_back(request);
}

void FailureChannel::ask(int peer) noexcept {
  Notice notice{};
  notice.subject = Subject::question;
  send(notice, peer);
}

// A rank that looks is in a wait, of this communicator or of one over it.
void FailureChannel::answer(int peer) {
  const std::vector<int> missing = missing_ ? missing_() : std::vector<int>();
  Notice notice{};
  notice.subject = Subject::answer;
  notice.count = static_cast<std::uint16_t>(std::min(missing.size(), notice.waiting_for.size()));
  std::copy_n(missing.begin(), notice.count, notice.waiting_for.begin());
  send(notice, peer);
}

std::vector<int> FailureChannel::roll_call(std::span<const int> ranks, std::chrono::milliseconds limit) {
  std::set<int> asked, silent;
  const auto ask_once = [&](int peer) {
    if (peer == rank_ || peer < 0 || peer >= size_ || !asked.insert(peer).second) return;
    silent.insert(peer);
    ask(peer);
  };
  answers_.clear();
  for (const int peer : ranks) ask_once(peer);
  const comm::Deadline end(limit);
  for (comm::Backoff backoff; !silent.empty() && !end.is_over(); backoff.pause()) {
    check();
    for (const auto& [peer, notice] : std::exchange(answers_, {})) {
      silent.erase(peer);
      for (int i = 0; i < notice.count; ++i) ask_once(notice.waiting_for[static_cast<std::size_t>(i)]);
    }
  }
  return {silent.begin(), silent.end()};
}

}  // namespace cpnsa::mpi
