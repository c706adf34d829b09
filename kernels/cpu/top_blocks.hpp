#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/selection_rule.hpp"

namespace cpnsa::cpu {

/// Selects the n blocks of one query by importance. add() takes the importances of summaries in ascending order; a
/// block's score is complete once all summaries that overlap it have been added.
template <class A>
class TopBlocks {
 public:
  explicit TopBlocks(const Config& config) : config_(&config) {}

  /// Starts the query at `position` of its document.
  void start(std::int64_t position) {
    rule_ = SelectionRule(*config_, position);
    best_.start(rule_);
    block_ = 0;
    open_[0] = open_[1] = A{0};
  }

  /// True if scores matter: with at most n causal blocks, all of them are selected.
  bool chooses() const { return rule_.chooses(); }

  /// Adds importance[0, count) of summaries first, first + 1, ... to the blocks they overlap.
  void add(std::int64_t first, const A* importance, std::int64_t count) {
    const std::int64_t s = config_->compress_stride, l = config_->compress_block, m = config_->select_block;
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t begin = (first + i) * s, end = begin + l;
      while (begin >= (block_ + 1) * m) close_block();
      const std::int64_t boundary = (block_ + 1) * m;
      // l <= m: a summary overlaps the block of its first token and at most the next one
      open_[0] += static_cast<A>(std::min(end, boundary) - begin) / static_cast<A>(s) * importance[i];
      if (end > boundary) open_[1] += static_cast<A>(end - boundary) / static_cast<A>(s) * importance[i];
    }
  }

  /// Writes the selected blocks, ascending, padded with -1 to n.
  void finish(std::int32_t* selected) {
    while (block_ < rule_.last()) close_block();
    best_.write(selected, config_->select_count);
  }

 private:
  // The score of block_ is complete.
  void close_block() {
    best_.offer({open_[0], block_});
    ++block_;
    open_[0] = open_[1];
    open_[1] = A{0};
  }

  const Config* config_;
  SelectionRule rule_;
  BestBlocks<A> best_;
  std::int64_t block_ = 0;  // the block whose score is open_[0]; open_[1] is the next block's
  A open_[2] = {};
};

}  // namespace cpnsa::cpu
