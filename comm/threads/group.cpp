#include "comm/threads/group.hpp"

#include <fmt/format.h>

#include <exception>
#include <utility>

#include "comm/interrupts.hpp"
#include "comm/threads/matching.hpp"

namespace cpnsa::threads {

using comm::Failure;

// The pause between two looks of a waiting rank at whether it is interrupted; longer with many ranks, which share
// cores.
std::chrono::milliseconds step_of(int ranks) {
  return std::chrono::milliseconds(50 + ranks);
}

Group::Group(int size)
    : calls_(static_cast<std::size_t>(size)),
      arrived_(static_cast<std::size_t>(size)),
      left_(static_cast<std::size_t>(size)),
      done_(static_cast<std::size_t>(size)),
      reads_(static_cast<std::size_t>(size)) {}

void Group::meet(int rank, const Call& call, std::chrono::milliseconds limit, FlightRecorder& recorder) {
  const comm::Deadline deadline(limit);
  comm::HostPoll host;
  std::unique_lock lock(mutex_);
  if (failure_) failure_->raise();
  const long own_generation = generation_;
  calls_[static_cast<std::size_t>(rank)] = call;
  arrived_[static_cast<std::size_t>(rank)] = true;
  if (++arrivals_ == size()) {
    mismatch_ = find_mismatch(calls_);
    reading_ = mismatch_.empty() ? size() : 0;
    arrivals_ = 0;
    arrived_.assign(arrived_.size(), false);
    ++generation_;
    changed_.notify_all();
  }
  // Once all have met, even a failed group's calls run to part(): others already read this rank's memory.
  while (generation_ == own_generation) {
    try {
      check_wait(rank, call, limit, deadline);
    } catch (const Error&) {  // this rank's memory is its own again
      arrived_[static_cast<std::size_t>(rank)] = false;
      --arrivals_;
      throw;
    }
    recorder.write_if_requested();
    changed_.wait_until(lock, deadline.end_of_step(step_of(size())));
    if (generation_ != own_generation) break;
    lock.unlock();
    host.look();
    lock.lock();
  }
  if (!mismatch_.empty()) throw MismatchError(mismatch_);
}

void Group::check_wait(int rank, const Call& call, std::chrono::milliseconds limit,
                       const comm::Deadline& deadline) const {
  if (failure_) failure_->raise();
  if (const int gone = missing_for_ever(); gone >= 0)
    throw CommunicationError(fmt::format("{}: rank {} waited for rank {}, whose communicator is destroyed",
                                         name_of(call.operation), rank, gone));
  if (deadline.is_over()) throw DeadlineError(comm::describe_late(name_of(call.operation), rank, limit, missing()));
  comm::check_interrupt();
}

void Group::part(int rank, std::optional<Event> done) {
  std::unique_lock lock(mutex_);
  done_[static_cast<std::size_t>(rank)] = done;
  if (--reading_ == 0) changed_.notify_all();
  changed_.wait(lock, [&] { return reading_ == 0; });
}

void Group::begin_read() {
  const std::lock_guard lock(mutex_);
  if (failure_) failure_->raise();
  ++readers_;
}

void Group::end_read(int rank, std::optional<Event> reads) {
  const std::lock_guard lock(mutex_);
  if (reads) reads_[static_cast<std::size_t>(rank)] = reads;
  if (--readers_ == 0) changed_.notify_all();
}

void Group::after_reads(int rank, const std::function<void(Event)>& wait_for) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return readers_ == 0; });
  for (int peer = 0; peer < size(); ++peer)
    if (const auto& reads = reads_[static_cast<std::size_t>(peer)]; reads && peer != rank) wait_for(*reads);
}

void Group::fail(int rank, const Failure& failure) noexcept {
  const std::lock_guard lock(mutex_);
  if (!failure_) {
    failed_rank_ = rank;
    try {
      failure_ = failure;
    } catch (const std::exception&) {  // no memory for the reason: the others are released all the same
      failure_ = Failure{failure.kind, {}};
    }
  }
  changed_.notify_all();
}

void Group::leave(int rank) noexcept {
  const std::lock_guard lock(mutex_);
  left_[static_cast<std::size_t>(rank)] = true;
  reads_[static_cast<std::size_t>(rank)] = std::nullopt;  // they are over, and their event goes with the communicator
  changed_.notify_all();
}

std::optional<Failure> Group::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

std::optional<int> Group::failed_rank() const {
  const std::lock_guard lock(mutex_);
  return failed_rank_;
}

std::vector<int> Group::missing() const {
  std::vector<int> ranks;
  for (int rank = 0; rank < size(); ++rank)
    if (!arrived_[static_cast<std::size_t>(rank)]) ranks.push_back(rank);
  return ranks;
}

int Group::missing_for_ever() const {
  for (const int rank : missing())
    if (left_[static_cast<std::size_t>(rank)]) return rank;
  return -1;
}

}  // namespace cpnsa::threads
