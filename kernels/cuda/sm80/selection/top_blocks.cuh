#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/common/selection_rule.cuh"

namespace cpnsa::cuda::sm80 {

/// The best `num_scored` blocks of one query so far, held by one warp in shared memory. Scores come in ascending order
/// of blocks and are not negative; a NaN is offered as -1, below every number. Ties go to the lower block.
class TopBlocks {
 public:
  static std::size_t bytes(int num_scored) { return static_cast<std::size_t>(num_scored) * 8; }

  __device__ TopBlocks(float* scores, std::int32_t* blocks, int num_scored)
      : scores_(scores), blocks_(blocks), num_scored_(num_scored) {}

  /// Every lane of the warp offers a block or none; lower lanes the lower blocks.
  __device__ __forceinline__ void offer(float score, int block, bool valid) {
    unsigned waiting = __ballot_sync(all, valid && num_scored_ > 0 && (count_ < num_scored_ || score > worst_));
    while (waiting != 0) {
      const int source = __ffs(static_cast<int>(waiting)) - 1;
      waiting &= waiting - 1;
      insert(__shfl_sync(all, score, source), __shfl_sync(all, block, source));
    }
  }

  /// selected[init_blocks + i] = i-th lowest of the blocks kept, and the forced ones around them.
  __device__ void write(std::int32_t* selected, const SelectionRule& rule, int position) const {
    const int lane = threadIdx.x % 32, causal = rule.causal(position);
    if (!rule.chooses(position)) {
      for (int i = lane; i < rule.select_count; i += 32) selected[i] = i < causal ? i : -1;
      return;
    }
    for (int i = lane; i < rule.init_blocks; i += 32) selected[i] = i;
    for (int i = lane; i < num_scored_; i += 32) {
      int rank = 0;
      for (int other = 0; other < num_scored_; ++other) rank += blocks_[other] < blocks_[i];
      selected[rule.init_blocks + rank] = blocks_[i];
    }
    for (int i = lane; i < rule.local_blocks; i += 32)
      selected[rule.init_blocks + num_scored_ + i] = causal - rule.local_blocks + i;
  }

  /// The state of a query that a warp stores while it works on another.
  struct Mark {
    int count = 0;
    float worst = 0.f;
    int worst_at = 0;
  };
  __device__ void resume(const Mark& mark) {
    count_ = mark.count;
    worst_ = mark.worst;
    worst_at_ = mark.worst_at;
  }
  __device__ Mark mark() const { return {count_, worst_, worst_at_}; }

 private:
  static constexpr unsigned all = 0xffffffffu;

  __device__ __forceinline__ void insert(float score, int block) {
    if (count_ == num_scored_ && score <= worst_) return;  // an earlier one of the same offer raised the bar
    const int at = count_ < num_scored_ ? count_++ : worst_at_;
    if (threadIdx.x % 32 == 0) {
      scores_[at] = score;
      blocks_[at] = block;
    }
    __syncwarp();
    if (count_ == num_scored_) find_worst();
  }

  // The lowest score, of equal ones the highest block: it gives way to the next that is better.
  __device__ __forceinline__ void find_worst() {
    const int lane = threadIdx.x % 32;
    float score = INFINITY;
    int block = -1, at = 0;
    for (int i = lane; i < num_scored_; i += 32)
      if (block < 0 || scores_[i] < score || (scores_[i] == score && blocks_[i] > block)) {
        score = scores_[i];
        block = blocks_[i];
        at = i;
      }
    for (int offset = 16; offset > 0; offset /= 2) {
      const float other_score = __shfl_xor_sync(all, score, offset);
      const int other_block = __shfl_xor_sync(all, block, offset), other_at = __shfl_xor_sync(all, at, offset);
      if (other_block >= 0 && (block < 0 || other_score < score || (other_score == score && other_block > block))) {
        score = other_score;
        block = other_block;
        at = other_at;
      }
    }
    worst_ = score;
    worst_at_ = at;
  }

  float* scores_;
  std::int32_t* blocks_;
  int num_scored_;
  int count_ = 0;
  float worst_ = 0.f;
  int worst_at_ = 0;
};

}  // namespace cpnsa::cuda::sm80
