#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "cpnsa/device.hpp"

namespace cpnsa {

struct SendMessage {
  int peer;
  const void* data;
  std::size_t bytes;
};

struct ReceiveMessage {
  int peer;
  void* data;
  std::size_t bytes;
};

/// Moves bytes between ranks. Messages carry no tags: every rank makes the same sequence of calls, and the n-th call of
/// one rank meets the n-th call of every other.
///
/// `exchange` and `all_gather` move the device's memory, ordered within `stream`; a transport that works on the host
/// waits for the stream first. Waits have a deadline: DeadlineError names the operation and the rank waited for. When a
/// rank calls abort(), every wait of every rank ends with a CommunicationError that carries its reason.
class Communicator {
 public:
  static constexpr std::chrono::seconds default_deadline{300};

  virtual ~Communicator() = default;

  virtual std::string_view name() const = 0;  ///< "threads", "mpi", "nccl", "callbacks"
  virtual int rank() const = 0;
  virtual int size() const = 0;

  /// Longest time that one wait for other ranks may take.
  virtual void set_deadline(std::chrono::milliseconds deadline) = 0;

  /// Throws ArgumentError unless the transport can move this device's memory. Called when a layer is planned.
  virtual void check_device(Device&) const {}

  /// One phase's point-to-point messages: at most one to and one from each peer, peers ascending, none to oneself. Both
  /// sides leave out empty messages alike. A receive whose size differs from the send's is a MismatchError where the
  /// transport can tell.
  virtual void exchange(std::span<const SendMessage> sends, std::span<const ReceiveMessage> receives, Device& device,
                        Stream stream) = 0;

  /// all = the ranks' parts, concatenated in rank order; rank r's part is bytes[r] long, the same on every rank.
  /// `own` may already lie in its place in `all`.
  virtual void all_gather(const void* own, void* all, std::span<const std::size_t> bytes, Device& device,
                          Stream stream) = 0;

  /// The same for `bytes` bytes a rank in host memory; returns when done. For plans, agreement and statistics.
  virtual void all_gather_host(const void* own, void* all, std::size_t bytes) = 0;

  virtual void barrier() = 0;

  /// Waits on the host until `stream` has drained, on which messages may be under way: for a transport that only
  /// enqueues them, this is the wait that has a deadline and ends with the communicator.
  virtual void wait(Device& device, Stream stream) { device.synchronize(stream); }

  /// Throws the failure that ended the communicator, if one has. Never waits.
  virtual void check() {}

  /// Ends every rank's present and later waits with a CommunicationError that carries the reason, as far as the
  /// transport reaches the other ranks. Never blocks.
  virtual void abort(std::string_view reason) noexcept = 0;
};

/// Bytes that each rank sends to the others in agree().
inline constexpr std::size_t agreement_bytes = 1024;

/// Every rank calls it with what it found; returns where every rank passed an empty `problem` and an equal `call`.
/// Otherwise every rank throws: ArgumentError with the lowest failing rank's problem ("rank 2: ..."), or MismatchError
/// that shows where the calls first differ. `call` says what is being called, e.g. "forward #3" or a configuration.
void agree(Communicator& communicator, std::string_view call, std::string_view problem = {});

/// Begins a collective call: runs `validate`, which must not communicate, and agrees with the other ranks on the
/// result. Returns if `validate` returned on every rank and `call` is equal on every rank. A rank whose `validate`
/// threw rethrows that exception once the others know of it; they throw ArgumentError with its message ("rank 2: ...").
void agree_on(Communicator& communicator, std::string_view call, const std::function<void()>& validate);

/// For a rank that has found `problem` before it could join the other ranks in agree() or agree_on(): takes part in its
/// place, so that the others throw ArgumentError with the problem. Throws nothing: the caller has the problem to
/// report.
void refuse(Communicator& communicator, std::string_view problem) noexcept;

}  // namespace cpnsa
