#pragma once

#include "cpnsa/config.hpp"

namespace cpnsa::cuda {

/// The blocks that are always selected, and the number of those that are chosen by score.
struct SelectionRule {
  int select_block;  ///< m
  int select_count;  ///< n
  int init_blocks;
  int local_blocks;

  explicit SelectionRule(const Config& config)
      : select_block(static_cast<int>(config.select_block)),
        select_count(static_cast<int>(config.select_count)),
        init_blocks(static_cast<int>(config.init_blocks)),
        local_blocks(static_cast<int>(config.local_blocks)) {}

  __host__ __device__ int num_scored() const { return select_count - init_blocks - local_blocks; }
  __device__ int causal(int position) const { return position / select_block + 1; }
  /// Returns false where all causal blocks are selected, because there are at most n.
  __device__ bool chooses(int position) const { return causal(position) > select_count; }
  /// Blocks [init_blocks, candidates_end) compete for the num_scored() slots.
  __device__ int candidates_end(int position) const { return causal(position) - local_blocks; }
};

}  // namespace cpnsa::cuda
