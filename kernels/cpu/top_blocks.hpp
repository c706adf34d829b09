#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "cpnsa/config.hpp"

namespace cpnsa::cpu {

/// Selects the n blocks of one query by importance. add() takes the importances of summaries in ascending order; a
/// block's score is complete once all summaries that overlap it have been added. Only the best blocks so far are
/// stored, so the memory per query does not depend on the length of the document.
template <class A>
class TopBlocks {
 public:
  explicit TopBlocks(const Config& config) : config_(&config) {}

  /// Starts the query at `position` of its document.
  void start(std::int64_t position) {
    causal_ = position / config_->select_block + 1;
    if (chooses()) {
      first_ = config_->init_blocks;
      last_ = causal_ - config_->local_blocks;
      free_slots_ = config_->select_count - config_->init_blocks - config_->local_blocks;
    }
    block_ = 0;
    open_[0] = open_[1] = A{0};
    best_.clear();
  }

  /// True if scores matter: with at most n causal blocks, all of them are selected.
  bool chooses() const { return causal_ > config_->select_count; }

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
    std::int32_t* const end = selected + config_->select_count;
    std::int32_t* at = selected;
    if (!chooses()) {
      for (std::int64_t block = 0; block < causal_; ++block) *at++ = static_cast<std::int32_t>(block);
    } else {
      while (block_ < last_) close_block();
      for (std::int64_t block = 0; block < first_; ++block) *at++ = static_cast<std::int32_t>(block);
      for (const Candidate& candidate : best_) *at++ = static_cast<std::int32_t>(candidate.block);
      for (std::int64_t block = last_; block < causal_; ++block) *at++ = static_cast<std::int32_t>(block);
      std::sort(selected, at);
    }
    std::fill(at, end, -1);
  }

 private:
  struct Candidate {
    A score;
    std::int64_t block;
  };

  // A strict total order: the higher score, the lower block for equal scores; NaN is below every number.
  static bool better(const Candidate& a, const Candidate& b) {
    const bool a_nan = std::isnan(a.score), b_nan = std::isnan(b.score);
    if (a_nan != b_nan) return b_nan;
    if (!a_nan && a.score != b.score) return a.score > b.score;
    return a.block < b.block;
  }

  // The score of block_ is complete: makes it a candidate for the slots that no forced block takes.
  void close_block() {
    const Candidate candidate{open_[0], block_};
    if (block_ >= first_ && block_ < last_ && free_slots_ > 0) {
      if (static_cast<std::int64_t>(best_.size()) < free_slots_) {
        best_.push_back(candidate);
        std::push_heap(best_.begin(), best_.end(), better);
      } else if (better(candidate, best_.front())) {  // front() is the worst of the best
        std::pop_heap(best_.begin(), best_.end(), better);
        best_.back() = candidate;
        std::push_heap(best_.begin(), best_.end(), better);
      }
    }
    ++block_;
    open_[0] = open_[1];
    open_[1] = A{0};
  }

  const Config* config_;
  std::int64_t causal_ = 0;  // blocks 0, ..., causal_ - 1 are causal
  std::int64_t first_ = 0;   // blocks [first_, last_) are not forced
  std::int64_t last_ = 0;
  std::int64_t free_slots_ = 0;  // slots of the selection that no forced block takes
  std::int64_t block_ = 0;       // the block whose score is open_[0]; open_[1] is the next block's
  A open_[2] = {};
  std::vector<Candidate> best_;
};

}  // namespace cpnsa::cpu
