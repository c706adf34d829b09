#pragma once

// The ops of Exchange::pull, which read other ranks' memory. Symbols and types are those of ops.hpp.

#include "cpnsa/ops.hpp"

namespace cpnsa {

/// The address of one array in each rank's window, by rank.
struct RankPointers {
  static constexpr int max_ranks = 128;
  const void* of[max_ranks] = {};  // NOLINT(*-avoid-c-arrays): kernels index it
};

/// One full selection block that one rank, its reader, may need of another, its owner.
struct PulledBlock {
  std::int64_t block;  ///< index among all B
  std::int64_t row;    ///< its first row on the owner
  std::int32_t rank;   ///< the other rank: of PullBlocks the owner, of AddPulledBlocks the reader
  std::int32_t slot;   ///< of the reader's pool
};

/// pool[slot] = keys and values of KV head `group` of the block, read from the owner's window, for every item that is
/// needed: bit (block * G + group) of `needs` is set, as MarkNeeds sets it. Other slots are left as they are.
struct PullBlocks : OpContext {
  RankPointers k;              ///< [owner's rows, G, d_qk]
  RankPointers v;              ///< [owner's rows, G, d_v]
  const std::uint32_t* needs;  ///< [ceil(B G / 32)], this rank's
  std::int64_t group;
  void* pool;  ///< [slots][m d_qk + m d_v]
  ListView<PulledBlock> blocks;
};

/// dk and dv of KV head `group` of this rank's blocks += pool[slot] in the readers' windows, for every item that its
/// reader needed; the sums of a block are added to in the order of the list.
struct AddPulledBlocks : OpContext {
  RankPointers needs;  ///< [ceil(B G / 32)], each reader's
  RankPointers pool;   ///< acc [slots][m d_qk + m d_v]
  std::int64_t group;
  void* dk;                      ///< acc [rows, G, d_qk], "+="
  void* dv;                      ///< acc [rows, G, d_v], "+="
  ListView<PulledBlock> blocks;  ///< the items of one block one after another
};

using PullOps = OpList<PullBlocks, AddPulledBlocks>;

}  // namespace cpnsa
