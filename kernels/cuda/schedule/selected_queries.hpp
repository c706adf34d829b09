#pragma once

// The selection turned around: for each (block, KV head) the rows that selected it. Made on the device, in scratch
// memory, for the key-outer half of the selected branch's backward.

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cpnsa/ops.hpp"

namespace cpnsa::cuda {

/// Pairs (block, KV head) are numbered (head - group_begin) * blocks + block, with block among all B: neighbouring
/// pairs read queries of the same head. Lists are cut into parts of `part_queries` rows: part i of a pair has
/// number first_part[pair] + i.
struct SelectedQueries {
  std::int32_t* rows;          ///< local rows of every pair's list, ascending; lists one after another
  std::int64_t* first_row;     ///< [pairs + 1], where lists begin
  std::int32_t* first_part;    ///< [pairs + 1]
  std::int32_t* pair_of_part;  ///< [first_part[pairs]]
  std::int64_t pairs;
  std::int64_t max_parts;  ///< no fewer than first_part[pairs], which the host does not know
  std::int32_t part_queries;
  std::int32_t blocks;  ///< B, as far as the rank's documents reach; at least 1
  void* rest;           ///< of the scratch memory
};

SelectedQueries list_selected_queries(const SelectedAttentionBackward&, cudaStream_t);

/// Scratch memory that the lists take.
std::size_t selected_queries_bytes(const ProblemSize&);

}  // namespace cpnsa::cuda
