#pragma once

#include <bit>
#include <cstdint>
#include <span>
#include <vector>

#include "cpnsa/attention.hpp"
#include "cpnsa/ops.hpp"
#include "cpnsa/pull_ops.hpp"
#include "src/planning/layout.hpp"
#include "src/planning/peer_range.hpp"

namespace cpnsa::planning {

/// The exchange of one rank for KV heads [group_begin, group_end) of the selected branch. Slots are positions in the
/// send buffer and in the pool. Peers, KV heads and blocks ascend in both, so that sender and receiver agree on the
/// order.
struct ExchangeRound {
  std::int64_t group_begin;
  std::int64_t group_end;
  std::vector<BlockSlot> packed;  ///< own blocks -> slots of the send buffer; gradients come back in the same slots
  std::vector<PeerRange> sends;
  std::vector<PeerRange> receives;
  std::int64_t received = 0;  ///< slots of the pool in use
};

/// The selected branch of one rank: rounds over KV heads, and the location of each block's keys and values in its
/// round.
struct BlockSchedule {
  std::vector<ExchangeRound> rounds;
  std::vector<BlockLocation> table;  ///< [B, G]
  std::int64_t received = 0;         ///< (block, KV head) pairs received in all rounds
};

/// The (block, KV head) pairs that each rank's queries selected: bit block * G + group in 32-bit words per rank.
class NeedMatrix {
 public:
  static std::int64_t words_of(std::int64_t blocks, std::int64_t kv_heads) { return (blocks * kv_heads + 31) / 32; }

  NeedMatrix() = default;
  NeedMatrix(int ranks, std::int64_t blocks, std::int64_t kv_heads);

  void want(int rank, std::int64_t block, std::int64_t group) {
    const std::int64_t bit = block * kv_heads_ + group;
    at(words_, rank * words_per_rank_ + bit / 32) |= 1u << (bit % 32);
  }
  /// Calls visit(block, group) for the pairs of the rank that are also in `mask`, in ascending order.
  template <class Visit>
  void for_each_pair(int rank, const NeedMatrix& mask, Visit&& visit) const {
    for (std::int64_t word = 0; word < words_per_rank_; ++word)
      for (std::uint32_t bits = common(rank, mask, word); bits != 0; bits &= bits - 1) {
        const std::int64_t pair = word * 32 + std::countr_zero(bits);
        visit(pair / kv_heads_, pair % kv_heads_);
      }
  }
  /// How many those are.
  std::int64_t count(int rank, const NeedMatrix& mask) const {
    std::int64_t pairs = 0;
    for (std::int64_t word = 0; word < words_per_rank_; ++word) pairs += std::popcount(common(rank, mask, word));
    return pairs;
  }
  std::span<std::uint32_t> words() { return words_; }  ///< [ranks, words_of(B, G)]
  std::span<const std::uint32_t> words() const { return words_; }

 private:
  std::uint32_t common(int rank, const NeedMatrix& mask, std::int64_t word) const {
    const auto index = to_size(rank * words_per_rank_ + word);
    return words_[index] & mask.words_[index];
  }

  std::int64_t kv_heads_ = 0;
  std::int64_t words_per_rank_ = 0;
  std::vector<std::uint32_t> words_;
};

/// Plans the exchange of the selected branch. A pool holds the blocks that one KV head can need at most, independent of
/// what the queries select: KV heads share a round only if every rank's pool and send buffer still suffice.
class BlockPlanner {
 public:
  /// `selects`: whether queries select blocks at all; if not, none is reachable.
  BlockPlanner(const Layout& layout, std::int64_t kv_heads, int rank, bool selects = true);

  std::int64_t pool_slots() const { return at(pool_slots_, rank_); }
  std::int64_t send_slots() const { return at(send_slots_, rank_); }

  /// True if any rank can need a block of another; if not, no need matrix is read.
  bool any_reachable() const;

  /// Every reachable block, with one KV head per round.
  BlockSchedule gather() const;
  /// The blocks that the ranks' queries selected, and no other.
  BlockSchedule fetch(const NeedMatrix& needs) const;
  /// The same with one KV head per round: what Exchange::pull moves.
  BlockSchedule pull(const NeedMatrix& needs) const;

  /// The blocks that this rank can need of others, ascending by owner and block. Each has the slot that it has in every
  /// round of gather(), so that a rank knows where another puts a block without knowing what it needs.
  std::vector<PulledBlock> pulled() const;
  /// The blocks of this rank that others can need, ascending by block and reader.
  std::vector<PulledBlock> readers() const;
  std::int64_t max_pool_slots() const;  ///< of any rank
  /// The choice of `automatic` for these needs, the same on every rank.
  Exchange choose(const NeedMatrix& needs) const;

  /// Pairs that the rank's queries selected and it does not own.
  std::int64_t needed(const NeedMatrix& needs, int rank) const;

 private:
  BlockSchedule schedule(const NeedMatrix& needs, bool shares_rounds = true) const;
  std::vector<std::int64_t> pool_order(int rank) const;  ///< the block in each slot of gather()
  int owner(std::int64_t block) const;

  const Layout* layout_;
  std::int64_t kv_heads_;
  int rank_;
  NeedMatrix reachable_;                  ///< what each rank can need of others
  std::vector<std::int64_t> pool_slots_;  ///< per rank, the maximum of slots that a KV head takes in the pool
  std::vector<std::int64_t> send_slots_;  ///< per rank, the maximum of slots that a KV head takes in the send buffer
};

}  // namespace cpnsa::planning
