#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string_view>

#include "cpnsa/communicator.hpp"

namespace cpnsa::callbacks {

/// How a caller moves bytes between ranks, e.g. by a framework's process group. All memory is the host's; what they are
/// given is valid until they return, and they return when all has arrived. Every rank makes the same sequence of calls.
///
/// A callback fails by an exception: the library's own types stay what they are, any other becomes a
/// CommunicationError; the text names the rank and the operation.
struct Callbacks {
  /// Sends and receives these messages, of which there is at most one to and one from each other rank, peers ascending,
  /// none empty. The lists may be empty, on one rank and not on another.
  std::function<void(std::span<const SendMessage> sends, std::span<const ReceiveMessage> receives)> exchange;

  /// `all` holds a part of `bytes` bytes for each rank, in rank order, the own part in its place: fills in the others'.
  /// `bytes` is at least 1, and the same on every rank.
  std::function<void(std::byte* all, std::size_t bytes)> all_gather;

  /// Returns when every rank has called it. By an all-gather of a byte if not given.
  std::function<void()> barrier{};

  /// Tells the other ranks, if the caller can, that this one gives up, so that their callbacks fail rather than wait.
  /// Called once at most, maybe from another thread than the one that waits in a callback; must not wait.
  std::function<void(std::string_view reason)> abort{};

  /// How long a callback may wait for other ranks from now on. Called with initial_deadline() when the communicator is
  /// made. Without it the caller's own limit holds.
  std::function<void(std::chrono::milliseconds)> set_deadline{};
};

/// Rank `rank` of `size` ranks that `callbacks` connect; with one rank they are not called. Memory that the host cannot
/// reach is moved through pinned host buffers. Calls are not compared between ranks but by agree(): whether messages
/// that do not fit together are told apart is the callbacks' affair. After the first failure every call ends with it.
///
/// Throws ArgumentError unless 0 <= rank < size and exchange and all_gather are given.
std::unique_ptr<Communicator> make_communicator(int rank, int size, Callbacks callbacks);

}  // namespace cpnsa::callbacks
