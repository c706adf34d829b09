#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>

#include "cpnsa/require_cxx20.hpp"

namespace cpnsa {

/// Records the operations of one rank of a communicator: the present one, which an error names, and the last ones,
/// which a failed job leaves behind. Thread-safe. Names are not copied: they must be string literals.
///
/// When the communicator fails, or after request_trace(), the record is written to a file per rank in the folder that
/// the environment variable CPNSA_TRACE names; without it, or where that fails, nothing is written.
/// scripts/flight_record.py merges the files and says which rank was behind.
class FlightRecorder {
 public:
  static constexpr std::size_t capacity = 512;  ///< operations that are remembered

  FlightRecorder();
  FlightRecorder(const FlightRecorder&) = delete;
  FlightRecorder& operator=(const FlightRecorder&) = delete;

  /// The communicator that it belongs to, for the file.
  void set_owner(std::string_view transport, int rank, int ranks);

  /// A collective call, such as a layer's forward, while this object lives. Calls do not nest: an inner one changes
  /// nothing.
  class Call {
   public:
    Call(FlightRecorder& recorder, std::string_view name, std::int64_t layer = 0, std::int64_t number = 0);
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;
    ~Call();

   private:
    FlightRecorder& recorder_;
    bool outermost_;
  };

  /// An operation of the transport while this object lives. Of nested ones only the outermost is recorded.
  class Operation {
   public:
    Operation(FlightRecorder& recorder, std::string_view name, std::size_t bytes_sent, std::size_t bytes_received);
    Operation(const Operation&) = delete;
    Operation& operator=(const Operation&) = delete;
    ~Operation();

   private:
    FlightRecorder& recorder_;
    bool outermost_;
  };

  /// Says what the next operations move, e.g. "halo", until the call ends or it is set again.
  void set_purpose(std::string_view purpose);

  /// The present operation, or else the last: "forward of layer 3, call 17, operation 4: exchange of halo". Empty if
  /// there has been none.
  std::string describe() const;
  /// The present call, "forward of layer 3, call 17", or empty.
  std::string describe_call() const;

  /// A number that this rank drew; agree() gives all ranks that of rank 0, which tells the files of a job's groups
  /// apart.
  std::uint64_t own_group() const { return own_group_; }
  void set_group(std::uint64_t group);

  /// Writes the file, with the reason.
  void write(std::string_view reason) const noexcept;
  /// Writes it if request_trace() was called since it last did.
  void write_if_requested() noexcept;

 private:
  using Clock = std::chrono::steady_clock;

  struct CallName {
    std::string_view name;
    std::int64_t layer = 0;
    std::int64_t number = 0;
    std::int64_t operations = 0;  ///< begun within it
  };
  struct Entry {
    CallName call;  ///< of which `operations` is this one's number
    std::int64_t sequence = 0;
    std::string_view name;
    std::string_view purpose;
    std::size_t bytes_sent = 0;
    std::size_t bytes_received = 0;
    Clock::time_point begin{};
    Clock::time_point end{};  ///< the same as begin while it goes on
    bool ended = false;
  };

  static std::string text_of(const CallName& call);
  static std::string text_of(const Entry& entry);
  std::string file_text(std::string_view reason) const;

  mutable std::mutex mutex_;
  std::string transport_;
  int rank_ = 0;
  int ranks_ = 1;
  std::uint64_t own_group_;
  std::uint64_t group_ = 0;
  CallName call_;
  std::string_view purpose_;
  int depth_ = 0;  // of nested operations
  bool in_call_ = false;
  std::int64_t operations_ = 0;
  std::array<Entry, capacity> entries_{};
  int traces_written_;
};

/// Makes every communicator of the process write its record when it next waits or begins an operation. May be called
/// from a signal handler.
void request_trace() noexcept;

}  // namespace cpnsa
