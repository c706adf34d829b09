#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "comm/deadline.hpp"
#include "comm/failure.hpp"
#include "comm/operation.hpp"
#include "cpnsa/flight_recorder.hpp"

namespace cpnsa::threads {

/// A rank's operation, as it shows it to the others; its memory is read between Group::meet and Group::part.
struct Call {
  comm::Operation operation;
  std::span<const SendMessage> sends{};
  std::span<const ReceiveMessage> receives{};
  const void* own = nullptr;
  std::span<const std::size_t> bytes{};  ///< of each rank's part of an all-gather
  std::optional<Event> ready{};          ///< when the rank's memory may be read, unless that is now
};

/// The state that the ranks of one process share.
class Group {
 public:
  explicit Group(int size);

  int size() const { return static_cast<int>(calls_.size()); }

  /// Shows `call` and waits until every rank has shown its own. Throws the same MismatchError on every rank unless they
  /// fit together, DeadlineError if a rank does not come, CommunicationError if it has left or the group has failed.
  void meet(int rank, const Call& call, std::chrono::milliseconds deadline, FlightRecorder& recorder);

  /// A rank's call, between meet() and part().
  const Call& call(int rank) const { return calls_[static_cast<std::size_t>(rank)]; }

  /// Ends the call: this rank has read what it wants, up to the point of its stream that `done` marks. Returns when
  /// that holds for every rank, so that none frees memory that another reads, not even after a failure. Waits for
  /// copies only, never for a rank to arrive. Does not throw.
  void part(int rank, std::optional<Event> done);

  /// The event given to the latest part(), until this rank meets the others again.
  const std::optional<Event>& done(int rank) const { return done_[static_cast<std::size_t>(rank)]; }

  /// A rank reads other ranks' windows between begin_read() and end_read(), up to the point of its stream that `reads`
  /// marks. After a failure begin_read() throws it.
  void begin_read();
  void end_read(int rank, std::optional<Event> reads);
  /// After a failure: waits until no rank is between begin_read() and end_read(), then gives `wait_for` the event of
  /// each other rank's last read.
  void after_reads(int rank, const std::function<void(Event)>& wait_for);

  /// Releases every rank; only the group's first failure counts.
  void fail(int rank, const comm::Failure& failure) noexcept;
  /// The rank makes no more calls: those that wait for it learn it at once.
  void leave(int rank) noexcept;

  std::optional<comm::Failure> failure() const;

  /// The rank that failed first.
  std::optional<int> failed_rank() const;

 private:
  /// Throws what ends a wait for the others, if anything does.
  void check_wait(int rank, const Call& call, std::chrono::milliseconds limit, const comm::Deadline& deadline) const;
  std::vector<int> missing() const;
  /// A rank that others wait for and that has left; none: -1.
  int missing_for_ever() const;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Call> calls_;
  std::vector<char> arrived_;
  std::vector<char> left_;
  int arrivals_ = 0;
  long generation_ = 0;  // of meetings
  int reading_ = 0;      // ranks between meet() and part()
  int readers_ = 0;      // ranks between begin_read() and end_read()
  std::string mismatch_;
  std::vector<std::optional<Event>> done_;
  std::vector<std::optional<Event>> reads_;  // the last of each rank
  std::optional<comm::Failure> failure_;
  std::optional<int> failed_rank_;
};

}  // namespace cpnsa::threads
