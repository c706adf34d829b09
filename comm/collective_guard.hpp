#pragma once

#include <cstddef>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

#include "comm/failure.hpp"
#include "comm/interrupts.hpp"
#include "comm/operation.hpp"
#include "cpnsa/flight_recorder.hpp"

namespace cpnsa::comm {

/// Runs the operations of a communicator on one rank, and holds the failure that ended it. Only the first failure
/// counts: every later operation throws it again. A transport says in a derived class how ranks tell each other.
class CollectiveGuard {
 public:
  explicit CollectiveGuard(const Communicator& owner) : owner_(owner) {}
  CollectiveGuard(const CollectiveGuard&) = delete;
  CollectiveGuard& operator=(const CollectiveGuard&) = delete;
  virtual ~CollectiveGuard() = default;

  /// Runs `body`. What it throws is the communicator's failure from then on, and told to the other ranks. Errors of
  /// this rank's own device, memory and arguments are thrown as they are, all others as the failure.
  template <class Body>
  void run(Operation operation, std::size_t bytes_sent, std::size_t bytes_received, const Body& body) {
    const FlightRecorder::Operation recorded(owner_.recorder(), name_of(operation), bytes_sent, bytes_received);
    run(body);
  }

  /// The same for what is no operation of all ranks: a wait for what was enqueued.
  template <class Body>
  void run(const Body& body) {
    check();
    try {
      check_interrupt();
      body();
    } catch (...) {
      fail_by_exception();
      rethrow();
    }
  }

  /// Throws the failure, if there is one by now.
  void check();
  bool failed() const;

  /// The communicator's abort().
  void abort(std::string_view reason) noexcept;
  /// The exception that is being handled becomes the failure.
  void fail_by_exception() noexcept;

 protected:
  /// The failure that another rank has told, if any; never waits.
  virtual std::optional<Failure> look() { return std::nullopt; }
  /// Tells every other rank. Never waits.
  virtual void tell(const Failure& failure) noexcept = 0;
  /// Ends what this rank has under way, after any rank's failure.
  virtual void release() noexcept {}

 private:
  /// A failure that another rank has told becomes this rank's. Whether there is one.
  bool adopt() noexcept;
  void fail(Failure::Kind kind, std::string_view reason) noexcept;
  void gave_up(std::string_view reason) noexcept;
  std::string with_operation(std::string_view reason) const;
  [[noreturn]] void rethrow() const;

  const Communicator& owner_;
  mutable std::mutex mutex_;  // of failure_: abort() may come from another thread
  std::optional<Failure> failure_;
};

}  // namespace cpnsa::comm
