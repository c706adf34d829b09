#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "cpnsa/config.hpp"

namespace cpnsa::cpu {

/// The blocks among which a query chooses, and those that it is forced to select.
class SelectionRule {
 public:
  SelectionRule() = default;
  /// For the query at `position` of its document.
  SelectionRule(const Config& config, std::int64_t position)
      : causal_(position / config.select_block + 1), count_(config.select_count) {
    if (!chooses()) return;
    first_ = config.init_blocks;
    last_ = causal_ - config.local_blocks;
    free_slots_ = config.select_count - config.init_blocks - config.local_blocks;
  }

  /// True if scores matter: with at most n causal blocks, all of them are selected.
  bool chooses() const { return causal_ > count_; }
  std::int64_t causal() const { return causal_; }  ///< blocks 0, ..., causal() - 1 are causal
  std::int64_t first() const { return first_; }    ///< blocks [first(), last()) are not forced
  std::int64_t last() const { return last_; }
  std::int64_t free_slots() const { return free_slots_; }  ///< of the n, those that no forced block takes

 private:
  std::int64_t causal_ = 0;
  std::int64_t count_ = 0;
  std::int64_t first_ = 0;
  std::int64_t last_ = 0;
  std::int64_t free_slots_ = 0;
};

template <class A>
struct BlockCandidate {
  A score;
  std::int64_t block;
};

/// A strict total order: the higher score, the lower block for equal scores; NaN is below every number.
template <class A>
bool better(const BlockCandidate<A>& a, const BlockCandidate<A>& b) {
  const bool a_nan = std::isnan(a.score), b_nan = std::isnan(b.score);
  if (a_nan != b_nan) return b_nan;
  if (!a_nan && a.score != b.score) return a.score > b.score;
  return a.block < b.block;
}

/// The best blocks of one query so far, of those that are not forced. The memory per query does not depend on the
/// length of the document, and the result does not depend on the order of the offers.
template <class A>
class BestBlocks {
 public:
  void start(const SelectionRule& rule) {
    rule_ = rule;
    best_.clear();
  }

  void offer(const BlockCandidate<A>& candidate) {
    if (candidate.block < rule_.first() || candidate.block >= rule_.last() || rule_.free_slots() <= 0) return;
    if (static_cast<std::int64_t>(best_.size()) < rule_.free_slots()) {
      best_.push_back(candidate);
      std::push_heap(best_.begin(), best_.end(), better<A>);
    } else if (better(candidate, best_.front())) {  // front() is the worst of the best
      std::pop_heap(best_.begin(), best_.end(), better<A>);
      best_.back() = candidate;
      std::push_heap(best_.begin(), best_.end(), better<A>);
    }
  }

  const std::vector<BlockCandidate<A>>& candidates() const { return best_; }

  /// Writes the selected blocks, ascending, padded with -1 to `count`, the n of the configuration.
  void write(std::int32_t* selected, std::int64_t count) const {
    std::int32_t* at = selected;
    const auto append = [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t block = begin; block < end; ++block) *at++ = static_cast<std::int32_t>(block);
    };
    if (!rule_.chooses()) {
      append(0, rule_.causal());
    } else {
      append(0, rule_.first());
      for (const BlockCandidate<A>& candidate : best_) *at++ = static_cast<std::int32_t>(candidate.block);
      append(rule_.last(), rule_.causal());
      std::sort(selected, at);
    }
    std::fill(at, selected + count, -1);
  }

 private:
  SelectionRule rule_;
  std::vector<BlockCandidate<A>> best_;
};

}  // namespace cpnsa::cpu
