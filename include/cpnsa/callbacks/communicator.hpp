#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string_view>

#include "cpnsa/communicator.hpp"

namespace cpnsa::callbacks {

/// A caller's functions that move bytes between ranks, e.g. by a framework's process group. All memory is host memory
/// and valid until the function returns; a function returns when all data has arrived. Every rank makes the same
/// sequence of calls.
///
/// A callback fails by an exception: exceptions of the library keep their type, any other becomes a
/// CommunicationError; the text names the rank and the operation.
struct Callbacks {
  /// Sends and receives these messages: at most one to and one from each other rank, peers ascending, none empty. The
  /// lists may be empty on some ranks only.
  std::function<void(std::span<const SendMessage> sends, std::span<const ReceiveMessage> receives)> exchange;

  /// Fills `all`, which has `bytes` bytes per rank in rank order and already holds this rank's part. `bytes` is at
  /// least 1 and the same on every rank.
  std::function<void(std::byte* all, std::size_t bytes)> all_gather;

  /// Returns when every rank has called it. If not given, an all-gather of one byte is used.
  std::function<void()> barrier{};

  /// Tells the other ranks, if possible, that this one gives up, so that their callbacks fail instead of waiting.
  /// Called at most once, possibly from another thread than the one that waits in a callback; must not wait.
  std::function<void(std::string_view reason)> abort{};

  /// How long a callback may wait for other ranks from now on. Called with initial_deadline() when the communicator is
  /// made. Without it the caller's own limit holds.
  std::function<void(std::chrono::milliseconds)> set_deadline{};
};

/// The communicator of rank `rank` of `size` ranks that `callbacks` connect; with one rank they are not called. Memory
/// that the host cannot access is moved through pinned host buffers. Only agree() compares the ranks' calls; whether
/// mismatched messages are detected depends on the callbacks. After the first failure every call fails with it.
///
/// Throws ArgumentError unless 0 <= rank < size and exchange and all_gather are given.
std::unique_ptr<Communicator> make_communicator(int rank, int size, Callbacks callbacks);

}  // namespace cpnsa::callbacks
