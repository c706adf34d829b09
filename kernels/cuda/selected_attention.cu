#include "kernels/cuda/attention_launch.cuh"
#include "kernels/cuda/block_rows.cuh"
#include "kernels/cuda/selected_union.cuh"
#include "kernels/cuda/stage_functions.hpp"

namespace cpnsa::cuda {
namespace {

/// The union's blocks, ascending, each cut into key tiles.
template <class Shape>
struct SelectedSource {
  using T = typename Shape::T;
  SelectedUnion list;
  BlockRows<T> rows;
  const BlockLocation* table;  ///< of the document's block 0, KV head of the block of threads; step `groups`
  int groups;
  int block_tokens;     ///< m
  int tiles_per_block;  ///< ceil(m / keys)
  int position;         ///< of the tile's first query
  int last;             ///< one past the position of its last

  __device__ int tiles() const { return *list.count * tiles_per_block; }
  __device__ int key(int tile) const {
    return list.blocks[tile / tiles_per_block] * block_tokens + tile % tiles_per_block * Shape::keys;
  }
  __device__ int keys_in(int tile) const {
    return min(Shape::keys, block_tokens - tile % tiles_per_block * Shape::keys);
  }
  __device__ bool wanted(int tile, int first, int end) const {
    const unsigned long long range = (end - first >= 64 ? ~0ull : (1ull << (end - first)) - 1) << first;
    return (list.queries[tile / tiles_per_block] & range) != 0;
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
    if (!(list.queries[tile / tiles_per_block] >> query & 1)) return {0, 0};
    return {0, min(keys_in(tile), position + query + 1 - key(tile))};
  }
};

template <class T>
struct SelectedTensors {
  BlockTensors<T> blocks;
  const BlockLocation* table;    ///< [B, G]
  const std::int32_t* selected;  ///< [rows, G, n]
  int head_begin;
  int select_count;  ///< n
  int words;         ///< of the bitmap of a document's blocks
  int capacity;      ///< blocks that a union can have
};

template <class Shape>
__global__ void __launch_bounds__(Shape::threads)
    selected_attention_kernel(AttentionProblem<typename Shape::T> a, SelectedTensors<typename Shape::T> tensors) {
  using T = typename Shape::T;
  extern __shared__ __align__(1024) unsigned char shared[];
  const QueryTile tile = a.tiles[blockIdx.x];
  const Segment& segment = a.segments[tile.segment];
  const int group = tensors.head_begin + blockIdx.y,
            position = static_cast<int>(segment.position + tile.row - segment.row);
  SelectedSource<Shape> source{SelectedUnion(shared + Shape::shared_bytes, tensors.words, tensors.capacity),
                               BlockRows<T>(tensors.blocks, group),
                               tensors.table + segment.block * a.groups + group,
                               a.groups,
                               tensors.blocks.block_tokens,
                               (tensors.blocks.block_tokens + Shape::keys - 1) / Shape::keys,
                               position,
                               position + tile.rows};
  const int words = min(tensors.words, (source.last - 1) / tensors.blocks.block_tokens / 32 + 1);
  source.list.template build<Shape::threads>(tensors.selected + (tile.row * a.groups + group) * tensors.select_count,
                                             tile.rows, tensors.select_count,
                                             static_cast<std::int64_t>(a.groups) * tensors.select_count, words);
  attend<Shape>(a, tile, group, source, ptx::shared_address(shared));
}

}  // namespace

void selected_attention(const SelectedAttention& a, cudaStream_t stream) {
  visit_shape<AttentionShape>(a, [&]<class Shape>(std::type_identity<Shape>) {
    using T = typename Shape::T;
    const Config& config = *a.config;
    const std::int64_t blocks = config.blocks_of(cuda_schedule(a.queries).end_position());
    SelectedTensors<T> tensors{block_tensors<T>(a),
                               a.table,
                               a.selected,
                               static_cast<int>(a.head_begin),
                               static_cast<int>(config.select_count),
                               SelectedUnion::words(blocks),
                               0};
    tensors.capacity =
        static_cast<int>(std::min<std::int64_t>(blocks, queries_of(config, Shape::rows) * config.select_count));
    launch_attention<Shape>(selected_attention_kernel<Shape>, a,
                            Shape::shared_bytes + SelectedUnion::bytes(tensors.words, tensors.capacity),
                            a.head_end - a.head_begin, stream, tensors);
  });
}

}  // namespace cpnsa::cuda
