#pragma once

#include <cstdint>
#include <stdexcept>
#include <vector>

#include "src/planning/halo.hpp"

namespace cpnsa::test {

/// Moves token numbers along the lists of a planned halo as the transfers move keys and values. Returns the token in
/// each halo row of each rank, -1 if nothing was written there. Throws if a list writes a row twice or a message has no
/// partner.
inline std::vector<std::vector<std::int64_t>> simulate_halo(const std::vector<planning::RankHalo>& halos,
                                                            const std::vector<std::vector<std::int64_t>>& tokens_of) {
  const auto copy = [](const std::vector<RowRange>& ranges, const std::vector<std::int64_t>& from,
                       std::vector<std::int64_t>& to) {
    for (const RowRange& range : ranges)
      for (std::int64_t i = 0; i < range.count; ++i) {
        std::int64_t& destination = to.at(static_cast<std::size_t>(range.destination + i));
        if (destination != -1) throw std::logic_error("a row is written twice");
        destination = from.at(static_cast<std::size_t>(range.source + i));
      }
  };
  const std::size_t ranks = halos.size();
  std::vector<std::vector<std::int64_t>> stored(ranks), sent(ranks), received(ranks);
  for (std::size_t rank = 0; rank < ranks; ++rank) {
    stored[rank].assign(static_cast<std::size_t>(halos[rank].rows), -1);
    sent[rank].assign(static_cast<std::size_t>(halos[rank].sent_rows), -1);
    received[rank].assign(static_cast<std::size_t>(halos[rank].received_rows), -1);
    copy(halos[rank].packed, tokens_of[rank], sent[rank]);
    copy(halos[rank].own, tokens_of[rank], stored[rank]);
  }
  for (std::size_t rank = 0; rank < ranks; ++rank) {
    for (std::size_t i = 0; i < halos[rank].receives.size(); ++i) {
      const planning::PeerRange& receive = halos[rank].receives[i];
      const planning::RankHalo& sender = halos.at(static_cast<std::size_t>(receive.peer));
      const planning::PeerRange* partner = nullptr;
      for (const planning::PeerRange& send : sender.sends)
        if (send.peer == static_cast<int>(rank)) partner = &send;
      if (!partner || partner->count != receive.count) throw std::logic_error("a receive has no equal send");
      if (halos[rank].sender_first.at(i) != partner->first ||
          sender.receiver_first.at(static_cast<std::size_t>(partner - sender.sends.data())) != receive.first)
        throw std::logic_error("a rank reads another part of the buffer than the peer's");
      if (sender.sent_rows > halos[rank].max_sent_rows || halos[rank].received_rows > sender.max_received_rows)
        throw std::logic_error("a buffer of a window is too small");
      copy({{partner->first, receive.first, receive.count}}, sent[static_cast<std::size_t>(receive.peer)],
           received[rank]);
    }
    copy(halos[rank].received, received[rank], stored[rank]);
  }
  return stored;
}

}  // namespace cpnsa::test
