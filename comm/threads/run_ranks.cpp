#include <fmt/format.h>

#include <exception>
#include <mutex>
#include <thread>

#include "comm/threads/communicator.hpp"

namespace cpnsa::threads {
namespace {

std::vector<std::unique_ptr<Communicator>> communicators_of(const std::shared_ptr<Group>& group) {
  std::vector<std::unique_ptr<Communicator>> communicators;
  for (int rank = 0; rank < group->size(); ++rank)
    communicators.push_back(std::make_unique<ThreadCommunicator>(group, rank));
  return communicators;
}

std::shared_ptr<Group> make_group(int ranks) {
  if (ranks < 1) throw ArgumentError(fmt::format("ranks: found {}, expected 1 at least", ranks));
  return std::make_shared<Group>(ranks);
}

/// The exceptions of the ranks. The first to throw need not be the first to arrive here: a rank that calls abort()
/// before it throws releases the others, whose errors only say so.
class Thrown {
 public:
  explicit Thrown(int ranks) : by_rank_(static_cast<std::size_t>(ranks)) {}

  void add(int rank, std::exception_ptr exception) {
    const std::lock_guard lock(mutex_);
    if (!first_) first_ = exception;
    by_rank_[static_cast<std::size_t>(rank)] = std::move(exception);
  }

  void rethrow_cause(const Group& group) const {
    const std::optional<int> failed = group.failed_rank();
    const std::exception_ptr cause = failed ? by_rank_[static_cast<std::size_t>(*failed)] : nullptr;
    if (cause) std::rethrow_exception(cause);
    if (first_) std::rethrow_exception(first_);
  }

 private:
  std::mutex mutex_;
  std::exception_ptr first_;
  std::vector<std::exception_ptr> by_rank_;
};

void run_rank(Communicator& communicator, const std::function<void(Communicator&)>& body, Thrown& thrown) {
  try {
    body(communicator);
  } catch (const std::exception& error) {
    thrown.add(communicator.rank(), std::current_exception());
    communicator.abort(error.what());
  } catch (...) {
    thrown.add(communicator.rank(), std::current_exception());
    communicator.abort("an exception that is no std::exception");
  }
}

}  // namespace

std::vector<std::unique_ptr<Communicator>> make_communicators(int ranks) {
  return communicators_of(make_group(ranks));
}

void run_ranks(int ranks, const std::function<void(Communicator&)>& body) {
  const std::shared_ptr<Group> group = make_group(ranks);
  const std::vector<std::unique_ptr<Communicator>> communicators = communicators_of(group);
  Thrown thrown(ranks);
  {
    std::vector<std::jthread> threads;
    try {
      for (const std::unique_ptr<Communicator>& communicator : communicators)
        threads.emplace_back([&] { run_rank(*communicator, body, thrown); });
    } catch (const std::exception& error) {  // no more threads: those that run must not wait for those that do not
      communicators.back()->abort(error.what());
      throw;
    }
  }
  thrown.rethrow_cause(*group);
}

}  // namespace cpnsa::threads
