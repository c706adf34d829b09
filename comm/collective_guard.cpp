#include "comm/collective_guard.hpp"

#include <fmt/format.h>

#include <exception>
#include <new>

namespace cpnsa::comm {

void CollectiveGuard::check() {
  {
    const std::lock_guard lock(mutex_);
    if (failure_) failure_->raise();
  }
  if (!adopt()) return;
  const std::lock_guard lock(mutex_);
  failure_->raise();
}

bool CollectiveGuard::adopt() noexcept {
  try {
    const std::optional<Failure> told = look();
    if (!told) return false;
    {
      const std::lock_guard lock(mutex_);
      if (!failure_) failure_ = told;
    }
    owner_.recorder().write(told->reason);
    release();
    return true;
  } catch (const std::exception&) {  // the transport is out of order: this rank's own failure counts
    return false;
  }
}

bool CollectiveGuard::failed() const {
  const std::lock_guard lock(mutex_);
  return failure_.has_value();
}

// A reason that has been through a communicator below this one names the operation already.
std::string CollectiveGuard::with_operation(std::string_view reason) const {
  const std::string operation = owner_.recorder().describe();
  const std::string suffix = fmt::format(" [{}]", operation);
  if (operation.empty() || reason.ends_with(suffix)) return std::string(reason);
  return std::string(reason) + suffix;
}

void CollectiveGuard::abort(std::string_view reason) noexcept {
  gave_up(reason);
}

void CollectiveGuard::gave_up(std::string_view reason) noexcept {
  try {
    fail(Failure::Kind::aborted, fmt::format("rank {} gave up: {}", owner_.rank(), reason));
  } catch (const std::exception&) {  // no memory for the reason: the others are released all the same
    fail(Failure::Kind::aborted, {});
  }
}

// The failure that another rank told comes first: it names the rank that failed, where a transport's own error may name
// a rank that merely gave up because of it.
void CollectiveGuard::fail_by_exception() noexcept {
  if (failed() || adopt()) return;
  try {
    throw;
  } catch (const MismatchError& error) {
    fail(Failure::Kind::mismatch, error.what());
  } catch (const DeadlineError& error) {
    fail(Failure::Kind::deadline, error.what());
  } catch (const InterruptedError&) {
    try {
      fail(Failure::Kind::interrupted, fmt::format("rank {} gave up: interrupted", owner_.rank()));
    } catch (const std::exception&) {
      fail(Failure::Kind::interrupted, "interrupted");
    }
  } catch (const CommunicationError& error) {
    fail(Failure::Kind::aborted, error.what());
  } catch (const std::exception& error) {
    gave_up(error.what());
  } catch (...) {
    gave_up("an exception that is no std::exception");
  }
}

void CollectiveGuard::fail(Failure::Kind kind, std::string_view reason) noexcept {
  Failure failure{kind, {}};
  try {
    failure.reason = with_operation(reason);
  } catch (const std::exception&) {  // no memory for the text
  }
  {
    const std::lock_guard lock(mutex_);
    if (failure_) return;
    try {
      failure_ = failure;
    } catch (const std::exception&) {
      failure_ = Failure{kind, {}};
    }
  }
  owner_.recorder().write(failure.reason);
  tell(failure);
  release();
}

void CollectiveGuard::rethrow() const {
  try {
    throw;
  } catch (const CommunicationError&) {
  } catch (const MismatchError&) {
  } catch (const std::exception&) {  // this rank's own: its device, its memory, its arguments
    throw;
  } catch (...) {
  }
  const std::lock_guard lock(mutex_);
  failure_->raise();
}

}  // namespace cpnsa::comm
