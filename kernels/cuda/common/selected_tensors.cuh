#pragma once

// The arguments that the kernels of the selected branch share.

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/common/block_rows.cuh"
#include "kernels/cuda/common/selected_union.cuh"
#include "kernels/cuda/schedule/segment_schedule.hpp"

namespace cpnsa::cuda {

template <class T>
struct SelectedTensors {
  BlockTensors<const T> blocks;
  const BlockLocation* table;    ///< [B, G]
  const std::int32_t* selected;  ///< [rows, G, n]
  int group_begin;
  int select_count;  ///< n
  int words;         ///< of the bitmap of a document's blocks
  int capacity;      ///< blocks that a union can have

  std::size_t union_bytes() const {
    return static_cast<std::size_t>(SelectedUnion::list_bytes(capacity)) + SelectedUnion::bitmap_bytes(words);
  }
};

/// The stage's tensors, for SelectedAttention and its backward alike.
/// `queries`: those of a tile, of whose blocks a union is built; 0 where none is.
template <class T, class Stage>
SelectedTensors<T> selected_tensors(const Stage& a, std::int64_t queries) {
  const Config& config = *a.config;
  const std::int64_t blocks = config.blocks_of(cuda_schedule(a.queries).end_position());
  SelectedTensors<T> tensors{block_tensors<T>(a),
                             a.table,
                             a.selected,
                             static_cast<int>(a.group_begin),
                             static_cast<int>(config.select_count),
                             SelectedUnion::words(blocks),
                             0};
  tensors.capacity = static_cast<int>(std::min<std::int64_t>(blocks, queries * config.select_count));
  return tensors;
}

}  // namespace cpnsa::cuda
