#pragma once

// The work of the key-outer half of the selected branch's backward, cut into parts for thread blocks.

#include <cstdint>

#include "kernels/cuda/common/check.hpp"
#include "kernels/cuda/common/ordered_accumulation.cuh"
#include "kernels/cuda/common/problem.cuh"
#include "kernels/cuda/common/selected_tensors.cuh"
#include "kernels/cuda/schedule/key_tiles.hpp"
#include "kernels/cuda/schedule/segment_search.cuh"
#include "kernels/cuda/schedule/selected_queries.hpp"

namespace cpnsa::cuda {

/// Keys of a selection block that one thread block of the key-outer kernels takes.
inline constexpr int selected_tile_keys = 64;

/// A tile of a block's keys. Rows of the block itself see its keys up to their own; later rows see all.
struct BlockTile {
  std::int32_t block_row;  ///< local row of the block's first key, if the rank owns it
  int own;                 ///< keys of the block that are the rank's own rows, 0 for a block of the pool
  int first;               ///< key of the block that the tile begins with
  int keys;                ///< of the tile

  __device__ int seen_by(std::int32_t row) const {
    const int token = row - block_row;
    return token >= 0 && token < own ? min(keys, token + 1 - first) : keys;
  }
};

struct SelectedGradients {
  SelectedQueries lists;
  BlockTensors<float> tensors;  ///< dk, dv and dpool
  OrderedAccumulation order;    ///< a place for each tile of each pair
  int segment_count;
  int tiles_per_block;  ///< ceil(m / 64)
};

/// The work of one thread block: some of the rows that selected a pair, and a tile of its keys.
struct SelectedPart {
  BlockTile tile{};  ///< without keys if there is no such work
  BlockLocation at = 0;
  int group = 0;
  int count = 0;  ///< rows
  const std::int32_t* rows = nullptr;
  std::int64_t slot = 0;
  unsigned turn = 0;

  template <class T>
  __device__ SelectedPart(const AttentionProblem<T>& a, const SelectedTensors<T>& tensors,
                          const SelectedGradients& gradients, unsigned ticket) {
    const SelectedQueries& lists = gradients.lists;
    const auto part = static_cast<std::int32_t>(ticket / gradients.tiles_per_block);
    const int tile_of_block = static_cast<int>(ticket % gradients.tiles_per_block);
    if (part >= lists.first_part[lists.pairs]) return;
    const std::int32_t pair = lists.pair_of_part[part];
    group = tensors.group_begin + pair / lists.blocks;
    at = tensors.table[static_cast<std::int64_t>(pair % lists.blocks) * a.num_kv_heads + group];
    turn = part - lists.first_part[pair];
    slot = static_cast<std::int64_t>(pair) * gradients.tiles_per_block + tile_of_block;
    const std::int64_t begin = lists.first_row[pair] + static_cast<std::int64_t>(turn) * lists.part_queries;
    rows = lists.rows + begin;
    count = static_cast<int>(min(static_cast<std::int64_t>(lists.part_queries), lists.first_row[pair + 1] - begin));

    int keys = tensors.blocks.block_tokens;
    if (at >= 0) {  // the last block of a document may be shorter
      const Segment& segment = segment_of_row(a.segments, gradients.segment_count, at);
      keys = static_cast<int>(min(static_cast<std::int64_t>(keys), segment.row + segment.rows - at));
    }
    const int first = tile_of_block * selected_tile_keys;
    tile = {at, at >= 0 ? keys : 0, first, max(0, min(selected_tile_keys, keys - first))};
  }
};

inline std::int64_t tiles_per_block(const Config& config) {
  return (config.select_block + selected_tile_keys - 1) / selected_tile_keys;
}

/// The lists of rows that selected each block, and the number of parts that thread blocks take.
struct SelectedParts {
  SelectedQueries lists;
  std::int64_t count;  ///< an upper bound; parts beyond the last have no keys
};

/// Enqueues the kernels that make the lists, and zeroes the counters of the ordered accumulation behind them.
inline SelectedParts list_selected_parts(const SelectedAttentionBackward& a, cudaStream_t stream) {
  const SelectedQueries lists = list_selected_queries(a, stream);
  const std::int64_t tiles = tiles_per_block(*a.config);
  check(cudaMemsetAsync(lists.rest, 0, OrderedAccumulation::bytes(lists.pairs * tiles), stream), "cudaMemsetAsync");
  return {lists, lists.max_parts * tiles};
}

/// The tensors that the gradients are added to.
template <class T>
SelectedGradients selected_gradients(const SelectedAttentionBackward& a, const SelectedQueries& lists,
                                     const SelectedTensors<T>& tensors) {
  BlockTensors<float> sums{};
  sums.k = static_cast<float*>(a.dk);
  sums.v = static_cast<float*>(a.dv);
  sums.pool = static_cast<float*>(a.dpool);
  sums.num_kv_heads = tensors.blocks.num_kv_heads;
  sums.d_qk = tensors.blocks.d_qk;
  sums.d_v = tensors.blocks.d_v;
  sums.block_tokens = tensors.blocks.block_tokens;
  return {lists, sums, OrderedAccumulation(lists.rest), static_cast<int>(cuda_schedule(a.queries).segments.size()),
          static_cast<int>(tiles_per_block(*a.config))};
}

}  // namespace cpnsa::cuda
