#include "src/block_exchange.hpp"

#include <algorithm>

namespace cpnsa::planning {
namespace {

void append(std::vector<PeerRange>& list, std::int64_t& total, int peer) {
  if (list.empty() || list.back().peer != peer) list.push_back({peer, total, 0});
  ++list.back().count;
  ++total;
}

// Above this share of what gathering moves to the rank that receives most, fetching saves too little for its demand
// read and its scattered packing.
constexpr double fetch_pays_below = 0.9;

}  // namespace

DemandMatrix::DemandMatrix(int ranks, std::int64_t blocks, std::int64_t kv_heads)
    : kv_heads_(kv_heads), words_a_rank_(words_of(blocks, kv_heads)) {
  words_.resize(static_cast<std::size_t>(ranks * words_a_rank_));
}

BlockPlanner::BlockPlanner(const Layout& layout, std::int64_t kv_heads, int rank)
    : layout_(&layout), kv_heads_(kv_heads), rank_(rank) {
  const auto ranks = static_cast<std::size_t>(layout.ranks());
  send_slots_.resize(ranks);
  for (std::size_t r = 0; r < ranks; ++r) {
    reachable_.push_back(layout.reachable_blocks(static_cast<int>(r)));
    pool_slots_.push_back(static_cast<std::int64_t>(reachable_[r].size()));
    for (const std::int64_t block : reachable_[r])
      ++send_slots_[static_cast<std::size_t>(layout.block_owner[static_cast<std::size_t>(block)])];
  }
}

template <class Wants>
BlockSchedule BlockPlanner::schedule(const Wants& wants) const {
  const auto ranks = reachable_.size();
  BlockSchedule result;
  result.table.resize(static_cast<std::size_t>(layout_->blocks * kv_heads_));
  for (std::int64_t block = 0; block < layout_->blocks; ++block)
    if (layout_->block_owner[static_cast<std::size_t>(block)] == rank_)
      for (std::int64_t head = 0; head < kv_heads_; ++head)
        result.table[static_cast<std::size_t>(block * kv_heads_ + head)] =
            static_cast<BlockLocation>(layout_->block_row[static_cast<std::size_t>(block)]);

  // Slots each rank's pool and send buffer take for each head.
  std::vector<std::int64_t> pool(ranks * static_cast<std::size_t>(kv_heads_)), send(pool.size());
  for (std::size_t r = 0; r < ranks; ++r)
    for (const std::int64_t block : reachable_[r]) {
      const auto owner = static_cast<std::size_t>(layout_->block_owner[static_cast<std::size_t>(block)]);
      for (std::int64_t head = 0; head < kv_heads_; ++head)
        if (wants(static_cast<int>(r), block, head)) {
          ++pool[r * static_cast<std::size_t>(kv_heads_) + static_cast<std::size_t>(head)];
          ++send[owner * static_cast<std::size_t>(kv_heads_) + static_cast<std::size_t>(head)];
        }
    }
  const auto fits = [&](std::int64_t head_begin, std::int64_t head_end) {
    for (std::size_t r = 0; r < ranks; ++r) {
      std::int64_t pooled = 0, sent = 0;
      for (std::int64_t head = head_begin; head < head_end; ++head) {
        pooled += pool[r * static_cast<std::size_t>(kv_heads_) + static_cast<std::size_t>(head)];
        sent += send[r * static_cast<std::size_t>(kv_heads_) + static_cast<std::size_t>(head)];
      }
      if (pooled > pool_slots_[r] || sent > send_slots_[r]) return false;
    }
    return true;
  };

  for (std::int64_t head_begin = 0; head_begin < kv_heads_;) {
    std::int64_t head_end = head_begin + 1;
    while (head_end < kv_heads_ && fits(head_begin, head_end + 1)) ++head_end;

    ExchangeRound& round = result.rounds.emplace_back(ExchangeRound{head_begin, head_end, {}, {}, {}, 0});
    std::int64_t sent = 0;
    for (int peer = 0; peer < static_cast<int>(ranks); ++peer)
      for (std::int64_t head = head_begin; head < head_end; ++head) {
        for (const std::int64_t block : reachable_[static_cast<std::size_t>(peer)]) {
          const auto index = static_cast<std::size_t>(block);
          if (layout_->block_owner[index] != rank_ || !wants(peer, block, head)) continue;
          round.packed.push_back(
              {layout_->block_row[index], static_cast<std::int32_t>(head), static_cast<std::int32_t>(sent)});
          append(round.sends, sent, peer);
        }
        for (const std::int64_t block : reachable_[static_cast<std::size_t>(rank_)]) {
          const auto index = static_cast<std::size_t>(block);
          if (layout_->block_owner[index] != peer || !wants(rank_, block, head)) continue;
          result.table[static_cast<std::size_t>(block * kv_heads_ + head)] =
              static_cast<BlockLocation>(-1 - round.received);
          append(round.receives, round.received, peer);
        }
      }
    result.received += round.received;
    head_begin = head_end;
  }
  return result;
}

bool BlockPlanner::any_reachable() const {
  return std::any_of(pool_slots_.begin(), pool_slots_.end(), [](std::int64_t slots) { return slots > 0; });
}

BlockSchedule BlockPlanner::gather() const {
  return schedule([](int, std::int64_t, std::int64_t) { return true; });
}

BlockSchedule BlockPlanner::fetch(const DemandMatrix& demand) const {
  return schedule([&](int rank, std::int64_t block, std::int64_t head) { return demand.wants(rank, block, head); });
}

std::int64_t BlockPlanner::needed(const DemandMatrix& demand, int rank) const {
  std::int64_t pairs = 0;
  for (const std::int64_t block : reachable_[static_cast<std::size_t>(rank)])
    for (std::int64_t head = 0; head < kv_heads_; ++head) pairs += demand.wants(rank, block, head);
  return pairs;
}

Exchange BlockPlanner::choose(const DemandMatrix& demand) const {
  std::int64_t fetched = 0, gathered = 0;
  for (int rank = 0; rank < layout_->ranks(); ++rank) {
    fetched = std::max(fetched, needed(demand, rank));
    gathered = std::max(gathered, pool_slots_[static_cast<std::size_t>(rank)] * kv_heads_);
  }
  const bool pays = static_cast<double>(fetched) <= fetch_pays_below * static_cast<double>(gathered);
  return pays ? Exchange::fetch : Exchange::gather;
}

}  // namespace cpnsa::planning
