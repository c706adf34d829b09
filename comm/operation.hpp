#pragma once

// The operations of a communicator: their names, and the checks of their arguments that need no other rank.

#include <fmt/format.h>

#include <chrono>
#include <cstddef>
#include <numeric>
#include <span>
#include <string>
#include <string_view>

#include "comm/deadline.hpp"
#include "cpnsa/communicator.hpp"
#include "cpnsa/error.hpp"

namespace cpnsa::comm {

enum class Operation { exchange, all_gather, all_gather_host, barrier };

inline std::string_view name_of(Operation operation) {
  switch (operation) {
    case Operation::exchange: return "exchange";
    case Operation::all_gather: return "all_gather";
    case Operation::all_gather_host: return "all_gather_host";
    case Operation::barrier: return "barrier";
  }
  return "";
}

/// Throws ArgumentError unless the peers are other ranks, ascending, and every message has bytes to carry.
template <class Message>
void check_messages(std::span<const Message> messages, std::string_view direction, int rank, int size) {
  int previous = -1;
  for (const Message& message : messages) {
    if (message.peer <= previous || message.peer >= size || message.peer == rank)
      throw ArgumentError(
          fmt::format("exchange: rank {} of {}: found a {} with peer {} after {}, expected other "
                      "ranks, ascending",
                      rank, size, direction, message.peer, previous));
    if (message.bytes == 0)
      throw ArgumentError(
          fmt::format("exchange: rank {}: found a {} of 0 bytes with peer {}, expected empty messages "
                      "to be left out",
                      rank, direction, message.peer));
    previous = message.peer;
  }
}

inline void check_exchange(std::span<const SendMessage> sends, std::span<const ReceiveMessage> receives, int rank,
                           int size) {
  check_messages(sends, "send", rank, size);
  check_messages(receives, "receive", rank, size);
}

/// Throws ArgumentError unless there is a size for each rank.
inline void check_parts(std::span<const std::size_t> bytes, int size) {
  if (bytes.size() != static_cast<std::size_t>(size))
    throw ArgumentError(fmt::format("all_gather: found sizes of {} parts, expected {}", bytes.size(), size));
}

inline std::size_t part_of(std::span<const std::size_t> bytes, int rank) {
  return bytes[static_cast<std::size_t>(rank)];
}

inline std::size_t total_of(std::span<const std::size_t> bytes) {
  return std::accumulate(bytes.begin(), bytes.end(), std::size_t{0});
}

/// Where rank's part lies in the gathered bytes.
inline std::size_t offset_of(std::span<const std::size_t> bytes, int rank) {
  return std::accumulate(bytes.begin(), bytes.begin() + rank, std::size_t{0});
}

template <class Message>
std::size_t total_bytes(std::span<const Message> messages) {
  std::size_t total = 0;
  for (const Message& message : messages) total += message.bytes;
  return total;
}

/// The text of a deadline that passed: "barrier: rank 0 waited 150 ms for rank 2, rank 3".
inline std::string describe_late(std::string_view operation, int rank, std::chrono::milliseconds deadline,
                                 std::span<const int> missing) {
  std::string names;
  for (const int other : missing) names += fmt::format("{}rank {}", names.empty() ? "" : ", ", other);
  return fmt::format("{}: rank {} waited {} for {}", operation, rank, text_of(deadline), names);
}

}  // namespace cpnsa::comm
