#pragma once

// The blocks that a tile of queries selected as its key source.

#include <cstdint>

#include "kernels/cuda/common/selected_tensors.cuh"
#include "kernels/cuda/sm80/attention/attention_tile.cuh"

namespace cpnsa::cuda::sm80 {

/// The union's blocks, ascending, each cut into key tiles.
template <class Shape>
struct SelectedSource {
  using T = typename Shape::T;
  SelectedUnion list;
  BlockRows<const T> rows;
  const BlockLocation* table;  ///< of the document's block 0, KV head of the block of threads; step `groups`
  int groups;
  int block_tokens;     ///< m
  int tiles_per_block;  ///< ceil(m / keys)
  int position;         ///< of the tile's first query
  int last;             ///< one past the position of its last

  /// `shared`: tensors.union_bytes() of memory. build() must follow.
  __device__ SelectedSource(const AttentionProblem<T>& a, const QueryTile& tile, int group,
                            const SelectedTensors<T>& tensors, unsigned char* shared)
      : list(shared, tensors.capacity, shared + SelectedUnion::list_bytes(tensors.capacity), tensors.words),
        rows(tensors.blocks, group),
        table(tensors.table + a.segments[tile.segment].block * a.num_kv_heads + group),
        groups(a.num_kv_heads),
        block_tokens(tensors.blocks.block_tokens),
        tiles_per_block((block_tokens + Shape::keys - 1) / Shape::keys),
        position(static_cast<int>(a.segments[tile.segment].position + tile.row - a.segments[tile.segment].row)),
        last(position + tile.rows) {}

  /// All threads call it.
  __device__ void build(const QueryTile& tile, int group, const SelectedTensors<T>& tensors) {
    const int words = min(tensors.words, (last - 1) / block_tokens / 32 + 1);
    list.template build<Shape::threads>(
        threadIdx.x, [] { __syncthreads(); }, tensors.selected + (tile.row * groups + group) * tensors.select_count,
        tile.rows, tensors.select_count, static_cast<std::int64_t>(groups) * tensors.select_count, words);
  }

  __device__ int tiles() const { return *list.count * tiles_per_block; }
  __device__ int key(int tile) const {
    return list.blocks[tile / tiles_per_block] * block_tokens + tile % tiles_per_block * Shape::keys;
  }
  __device__ int keys_in(int tile) const {
    return min(Shape::keys, block_tokens - tile % tiles_per_block * Shape::keys);
  }
  __device__ bool wanted(int tile, int first, int end) const {
    const unsigned long long range = (end - first >= 64 ? ~0ull : (1ull << (end - first)) - 1) << first;
    return (list.mask(tile / tiles_per_block) & range) != 0;
  }
  template <class RowOf>
  __device__ const T* row(int tile, int r, RowOf&& row_of) const {
    if (r >= keys_in(tile) || key(tile) + r >= last) return nullptr;
    const int block = list.blocks[tile / tiles_per_block];
    return row_of(table[static_cast<std::int64_t>(block) * groups], tile % tiles_per_block * Shape::keys + r);
  }
  __device__ const T* key_row(int tile, int r) const {
    return row(tile, r, [&](BlockLocation at, int token) { return rows.key(at, token); });
  }
  __device__ const T* value_row(int tile, int r) const {
    return row(tile, r, [&](BlockLocation at, int token) { return rows.value(at, token); });
  }
  __device__ KeyRange visible(int tile, int query) const {
    if (!(list.mask(tile / tiles_per_block) >> query & 1)) return {0, 0};
    return {0, min(keys_in(tile), position + query + 1 - key(tile))};
  }
};

}  // namespace cpnsa::cuda::sm80
