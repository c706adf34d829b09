#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cpnsa/device.hpp"

namespace cpnsa {

class FlightRecorder;
class OneSided;

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
/// one rank matches the n-th call of every other rank.
///
/// `exchange` and `all_gather` move the device's memory, ordered within `stream`; a transport that works on the host
/// waits for the stream first. Waits have a deadline: DeadlineError names the operation and the rank waited for. When a
/// rank calls abort(), every wait of every rank ends with a CommunicationError that carries its reason. What a failed
/// operation throws ends, in brackets, with what the rank was doing: "[forward of layer 3, call 17, operation 4:
/// exchange of halo]".
class Communicator {
 public:
  static constexpr std::chrono::seconds default_deadline{300};  ///< unless initial_deadline() says otherwise

  Communicator();
  virtual ~Communicator();

  virtual std::string_view name() const = 0;  ///< "threads", "mpi", "nccl", "callbacks"
  virtual int rank() const = 0;
  virtual int size() const = 0;

  /// Longest time that one wait for other ranks may take, at least 1 ms (ArgumentError otherwise). Ten years and more,
  /// such as milliseconds::max(), stand for ever.
  virtual void set_deadline(std::chrono::milliseconds deadline) = 0;

  /// Throws ArgumentError unless the transport can move this device's memory. Called when a layer is planned.
  virtual void check_device(Device&) const {}

  /// Sends and receives one phase of point-to-point messages: at most one to and one from each peer, peers ascending,
  /// none to the rank itself, none empty. A receive whose size differs from that of the send is a MismatchError if the
  /// transport can detect it.
  virtual void exchange(std::span<const SendMessage> sends, std::span<const ReceiveMessage> receives, Device& device,
                        Stream stream) = 0;

  /// all = the ranks' parts, concatenated in rank order; the part of rank r has bytes[r] bytes; `bytes` is the same on
  /// every rank. `own` may be this rank's part of `all`.
  virtual void all_gather(const void* own, void* all, std::span<const std::size_t> bytes, Device& device,
                          Stream stream) = 0;

  /// The same for `bytes` bytes per rank in host memory; returns when it is done. For plans, agreement and statistics.
  virtual void all_gather_host(const void* own, void* all, std::size_t bytes) = 0;

  virtual void barrier() = 0;

  /// Waits on the host until `stream` has drained. For a transport that only enqueues messages, this is the wait that
  /// has the deadline and that a failure of the communicator ends.
  virtual void wait(Device& device, Stream stream) { device.synchronize(stream); }

  /// Access of every rank to every other's memory, or null where the transport has none. See one_sided.hpp.
  virtual OneSided* one_sided() { return nullptr; }

  /// Throws the failure that ended the communicator, if one has. Never waits.
  virtual void check() {}

  /// Asks all ranks whether they wait too, and returns those that do not answer within `limit`, ascending: after a
  /// deadline, the ranks at fault. Empty if all answer, or if the transport cannot ask.
  virtual std::vector<int> silent_ranks(std::chrono::milliseconds) { return {}; }

  /// Ends the current and later waits of every rank that the transport can reach, with a CommunicationError that
  /// carries the reason. Never blocks.
  virtual void abort(std::string_view reason) noexcept = 0;

  /// A number for the next layer, from 1. Ranks make their layers in one order, so a layer has one number on all ranks.
  std::int64_t number_layer() { return ++*layers_; }
  std::int64_t layers() const { return *layers_; }  ///< numbered so far

  FlightRecorder& recorder() const { return *recorder_; }

 protected:
  /// For a communicator over another one of the same ranks: both number the same layers and share the record.
  void share(const Communicator& other);

 private:
  std::shared_ptr<std::atomic<std::int64_t>> layers_;
  std::shared_ptr<FlightRecorder> recorder_;
};

/// The deadline that a new communicator has: the one given to set_default_deadline(); otherwise the environment
/// variable CPNSA_DEADLINE, in whole seconds; otherwise Communicator::default_deadline. Throws ArgumentError if the
/// variable holds anything but a whole number from 1 to 1,000,000.
std::chrono::milliseconds initial_deadline();
/// For all communicators that this process makes from now on. ArgumentError if less than 1 ms.
void set_default_deadline(std::chrono::milliseconds deadline);

/// Bytes that each rank sends to the others in agree().
inline constexpr std::size_t agreement_bytes = 1024;

/// Compares the ranks' calls. Collective. Returns if every rank passed an empty `problem` and an equal `call`.
/// Otherwise every rank throws: ArgumentError with the lowest failing rank's problem ("rank 2: ..."), or MismatchError
/// that shows where the calls first differ, or that a rank is in another operation. `call` describes the call, e.g.
/// "forward #3" or a configuration.
void agree(Communicator& communicator, std::string_view call, std::string_view problem = {});

/// Begins a collective call: runs `validate`, which must not communicate, and agrees with the other ranks on the
/// result. Returns if `validate` returned on every rank and `call` is equal on every rank. A rank whose `validate`
/// threw rethrows that exception once the others know of it; they throw ArgumentError with its message ("rank 2: ...").
void agree_on(Communicator& communicator, std::string_view call, const std::function<void()>& validate);

/// Takes the place of agree() or agree_on() on a rank that found `problem` before it could call them; the others throw
/// ArgumentError with the problem. Throws nothing: the caller reports the problem.
void refuse(Communicator& communicator, std::string_view problem) noexcept;

}  // namespace cpnsa
