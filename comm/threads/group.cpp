#include "comm/threads/group.hpp"

#include <fmt/format.h>

#include <exception>
#include <utility>

#include "comm/threads/matching.hpp"

namespace cpnsa::threads {

using comm::Failure;

Group::Group(int size)
    : calls_(static_cast<std::size_t>(size)),
      arrived_(static_cast<std::size_t>(size)),
      done_(static_cast<std::size_t>(size)) {}

void Group::meet(int rank, const Call& call, std::chrono::milliseconds deadline) {
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
  } else if (!changed_.wait_until(lock, std::chrono::steady_clock::now() + deadline,
                                  [&] { return generation_ != own_generation || failure_; })) {
    std::vector<int> missing;
    for (int other = 0; other < size(); ++other)
      if (!arrived_[static_cast<std::size_t>(other)]) missing.push_back(other);
    set_failure(rank, {Failure::Kind::deadline, comm::describe_late(call.operation, rank, deadline, missing)});
  }
  // Once all have met, even a failed group's calls run to part(): others already read this rank's memory.
  if (generation_ == own_generation) failure_->raise();
  if (!mismatch_.empty()) throw MismatchError(mismatch_);
}

void Group::part(int rank, std::optional<Event> done) {
  std::unique_lock lock(mutex_);
  done_[static_cast<std::size_t>(rank)] = done;
  if (--reading_ == 0) changed_.notify_all();
  changed_.wait(lock, [&] { return reading_ == 0; });
  if (failure_) failure_->raise();
}

void Group::abort(int rank, std::string_view reason) noexcept {
  const std::lock_guard lock(mutex_);
  try {
    set_failure(rank, {Failure::Kind::aborted, fmt::format("rank {} gave up: {}", rank, reason)});
  } catch (const std::exception&) {  // no memory for the reason: the others are released all the same
    set_failure(rank, {Failure::Kind::aborted, {}});
  }
}

void Group::check() const {
  const std::lock_guard lock(mutex_);
  if (failure_) failure_->raise();
}

std::optional<int> Group::failed_rank() const {
  const std::lock_guard lock(mutex_);
  return failed_rank_;
}

void Group::set_failure(int rank, Failure failure) {
  if (!failure_) {
    failure_ = std::move(failure);
    failed_rank_ = rank;
  }
  changed_.notify_all();
}

}  // namespace cpnsa::threads
