#include "src/planning/block_exchange.hpp"

#include <algorithm>
#include <numeric>

namespace cpnsa::planning {
namespace {

void append(std::vector<PeerRange>& list, std::int64_t& total, int peer) {
  if (list.empty() || list.back().peer != peer) list.push_back({peer, total, 0});
  ++list.back().count;
  ++total;
}

// Above this share of what gathering moves to the rank that receives most, fetching saves too little for the
// reading of the need matrix and the scattered packing.
constexpr double fetch_pays_below = 0.9;

// The blocks of each rank and KV head, ascending.
class BlockLists {
 public:
  BlockLists(std::size_t ranks, std::int64_t kv_heads) : kv_heads_(kv_heads), lists_(ranks * to_size(kv_heads)) {}

  std::vector<std::int64_t>& operator()(int rank, std::int64_t group) { return at(lists_, rank * kv_heads_ + group); }

 private:
  std::int64_t kv_heads_;
  std::vector<std::vector<std::int64_t>> lists_;
};

}  // namespace

NeedMatrix::NeedMatrix(int ranks, std::int64_t blocks, std::int64_t kv_heads)
    : kv_heads_(kv_heads), words_per_rank_(words_of(blocks, kv_heads)) {
  words_.resize(to_size(ranks * words_per_rank_));
}

BlockPlanner::BlockPlanner(const Layout& layout, std::int64_t kv_heads, int rank, bool selects)
    : layout_(&layout), kv_heads_(kv_heads), rank_(rank), reachable_(layout.ranks(), layout.blocks, kv_heads) {
  const auto ranks = to_size(layout.ranks());
  pool_slots_.resize(ranks);
  send_slots_.resize(ranks);
  if (!selects) return;
  for (int r = 0; r < layout.ranks(); ++r)
    for (const std::int64_t block : layout.reachable_blocks(r)) {
      for (std::int64_t group = 0; group < kv_heads; ++group) reachable_.want(r, block, group);
      ++at(pool_slots_, r);
      ++at(send_slots_, owner(block));
    }
}

int BlockPlanner::owner(std::int64_t block) const {
  return at(layout_->block_owner, block);
}

BlockSchedule BlockPlanner::schedule(const NeedMatrix& needs, bool shares_rounds) const {
  const int ranks = layout_->ranks();
  const auto row_of = [&](std::int64_t block) { return at(layout_->block_row, block); };
  BlockSchedule result;
  result.table.resize(to_size(layout_->blocks * kv_heads_));
  for (std::int64_t block = 0; block < layout_->blocks; ++block)
    if (owner(block) == rank_)
      std::fill_n(result.table.begin() + block * kv_heads_, kv_heads_, static_cast<BlockLocation>(row_of(block)));

  // The slots of each rank's pool and send buffer per KV head, and this rank's messages.
  const auto count = to_size(ranks * kv_heads_);
  std::vector<std::int64_t> pool(count), send(count);
  BlockLists sent(to_size(ranks), kv_heads_), received(to_size(ranks), kv_heads_);
  for (int r = 0; r < ranks; ++r)
    needs.for_each_pair(r, reachable_, [&](std::int64_t block, std::int64_t group) {
      const int from = owner(block);
      ++at(pool, r * kv_heads_ + group);
      ++at(send, from * kv_heads_ + group);
      if (from == rank_) sent(r, group).push_back(block);
      if (r == rank_) received(from, group).push_back(block);
    });
  const auto fits = [&](std::int64_t group_begin, std::int64_t group_end) {
    for (int r = 0; r < ranks; ++r) {
      const auto sum = [&](const std::vector<std::int64_t>& slots) {
        const auto first = slots.begin() + r * kv_heads_;
        return std::accumulate(first + group_begin, first + group_end, std::int64_t{0});
      };
      const auto index = to_size(r);
      if (sum(pool) > pool_slots_[index] || sum(send) > send_slots_[index]) return false;
    }
    return true;
  };

  for (std::int64_t group_begin = 0; group_begin < kv_heads_;) {
    std::int64_t group_end = group_begin + 1;
    while (group_end < kv_heads_ && shares_rounds && fits(group_begin, group_end + 1)) ++group_end;

    ExchangeRound& round = result.rounds.emplace_back(ExchangeRound{group_begin, group_end, {}, {}, {}, 0});
    std::int64_t slots_sent = 0;
    for (int peer = 0; peer < ranks; ++peer)
      for (std::int64_t group = group_begin; group < group_end; ++group) {
        for (const std::int64_t block : sent(peer, group)) {
          round.packed.push_back(
              {row_of(block), static_cast<std::int32_t>(group), static_cast<std::int32_t>(slots_sent)});
          append(round.sends, slots_sent, peer);
        }
        for (const std::int64_t block : received(peer, group)) {
          at(result.table, block * kv_heads_ + group) = static_cast<BlockLocation>(-1 - round.received);
          append(round.receives, round.received, peer);
        }
      }
    result.received += round.received;
    group_begin = group_end;
  }
  return result;
}

bool BlockPlanner::any_reachable() const {
  return std::any_of(pool_slots_.begin(), pool_slots_.end(), [](std::int64_t slots) { return slots > 0; });
}

BlockSchedule BlockPlanner::gather() const {
  return schedule(reachable_);
}

BlockSchedule BlockPlanner::fetch(const NeedMatrix& needs) const {
  return schedule(needs);
}

BlockSchedule BlockPlanner::pull(const NeedMatrix& needs) const {
  return schedule(needs, false);
}

std::vector<std::int64_t> BlockPlanner::pool_order(int rank) const {
  if (at(pool_slots_, rank) == 0) return {};  // no queries select
  std::vector<std::int64_t> blocks = layout_->reachable_blocks(rank);
  std::stable_sort(blocks.begin(), blocks.end(), [&](std::int64_t a, std::int64_t b) { return owner(a) < owner(b); });
  return blocks;
}

std::vector<PulledBlock> BlockPlanner::pulled() const {
  std::vector<PulledBlock> list;
  for (const std::int64_t block : pool_order(rank_))
    list.push_back({block, at(layout_->block_row, block), owner(block), static_cast<std::int32_t>(list.size())});
  return list;
}

std::vector<PulledBlock> BlockPlanner::readers() const {
  std::vector<PulledBlock> list;
  for (int reader = 0; reader < layout_->ranks(); ++reader) {
    std::int32_t slot = 0;
    for (const std::int64_t block : pool_order(reader)) {
      if (owner(block) == rank_) list.push_back({block, at(layout_->block_row, block), reader, slot});
      ++slot;
    }
  }
  std::stable_sort(list.begin(), list.end(),
                   [](const PulledBlock& a, const PulledBlock& b) { return a.block < b.block; });
  return list;
}

std::int64_t BlockPlanner::max_pool_slots() const {
  return *std::max_element(pool_slots_.begin(), pool_slots_.end());
}

std::int64_t BlockPlanner::needed(const NeedMatrix& needs, int rank) const {
  return needs.count(rank, reachable_);
}

Exchange BlockPlanner::choose(const NeedMatrix& needs) const {
  std::int64_t fetched = 0, gathered = 0;
  for (int rank = 0; rank < layout_->ranks(); ++rank) {
    fetched = std::max(fetched, needed(needs, rank));
    gathered = std::max(gathered, at(pool_slots_, rank) * kv_heads_);
  }
  const bool pays = static_cast<double>(fetched) <= fetch_pays_below * static_cast<double>(gathered);
  return pays ? Exchange::fetch : Exchange::gather;
}

}  // namespace cpnsa::planning
