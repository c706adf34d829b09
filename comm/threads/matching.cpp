#include "comm/threads/matching.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace cpnsa::threads {
namespace {

template <class Message>
std::size_t bytes_with(std::span<const Message> messages, int peer) {
  const auto found = std::find_if(messages.begin(), messages.end(), [&](const Message& m) { return m.peer == peer; });
  return found == messages.end() ? 0 : found->bytes;
}

std::string compare_messages(std::span<const Call> calls, int from, int to) {
  const std::size_t sent = bytes_with(calls[static_cast<std::size_t>(from)].sends, to);
  const std::size_t expected = bytes_with(calls[static_cast<std::size_t>(to)].receives, from);
  if (sent == expected) return {};
  return fmt::format("exchange: rank {} receives {} bytes from rank {}, which sends {}", to, expected, from, sent);
}

std::string compare_parts(std::span<const Call> calls, int rank) {
  const std::span<const std::size_t> expected = calls[0].bytes, found = calls[static_cast<std::size_t>(rank)].bytes;
  const auto [first, other] = std::mismatch(expected.begin(), expected.end(), found.begin(), found.end());
  if (first == expected.end()) return {};
  return fmt::format("{}: rank {} found {} bytes for rank {}'s part, expected {} as on rank 0",
                     name_of(calls[0].operation), rank, *other, first - expected.begin(), *first);
}

}  // namespace

std::string find_mismatch(std::span<const Call> calls) {
  const int ranks = static_cast<int>(calls.size());
  for (int rank = 1; rank < ranks; ++rank) {
    const comm::Operation expected = calls[0].operation, found = calls[static_cast<std::size_t>(rank)].operation;
    if (found != expected)
      return fmt::format("rank {}: found a call of {}, expected {} as on rank 0", rank, name_of(found),
                         name_of(expected));
    if (std::string problem = compare_parts(calls, rank); !problem.empty()) return problem;
  }
  if (calls[0].operation != comm::Operation::exchange) return {};
  for (int from = 0; from < ranks; ++from) {
    // Empty messages are left out, so that what one side left out is a size of 0 on that side.
    for (const SendMessage& message : calls[static_cast<std::size_t>(from)].sends)
      if (std::string problem = compare_messages(calls, from, message.peer); !problem.empty()) return problem;
    for (const ReceiveMessage& message : calls[static_cast<std::size_t>(from)].receives)
      if (std::string problem = compare_messages(calls, message.peer, from); !problem.empty()) return problem;
  }
  return {};
}

}  // namespace cpnsa::threads
