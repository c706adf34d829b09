#include "kernels/cuda/gradient_launch.cuh"
#include "kernels/cuda/key_tiles.hpp"
#include "kernels/cuda/row_cursor.cuh"
#include "kernels/cuda/scratch.hpp"
#include "kernels/cuda/segment_search.cuh"
#include "kernels/cuda/selected_queries.hpp"
#include "kernels/cuda/selected_source.cuh"
#include "kernels/cuda/stage_functions.hpp"
#include "kernels/cuda/turns.cuh"

namespace cpnsa::cuda {
namespace {

template <class Shape>
__global__ void __launch_bounds__(Shape::threads, 2)
    selected_query_gradients_kernel(GradientProblem<typename Shape::T> a, SelectedTensors<typename Shape::T> tensors) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const QueryTile tile = a.tiles[blockIdx.x];
  const int group = tensors.head_begin + blockIdx.y;
  SelectedSource<Shape> source(a, tile, group, tensors, shared + Shape::shared_bytes);
  source.build(tile, group, tensors);
  add_query_gradients<Shape>(a, tile, group, source, ptx::shared_address(shared));
}

/// A tile of a block's keys. Rows of the block itself see its keys up to their own; others, which come later, all.
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

/// Some of the rows that selected a block.
template <class Shape>
class SelectingRows {
 public:
  __device__ SelectingRows(const AttentionProblem<typename Shape::T>& a, const std::int32_t* list, int count, int group,
                           const BlockTile& tile)
      : heads_(a.heads),
        list_(list),
        to_come_(count),
        first_head_(group * a.heads_per_group),
        tile_(tile),
        rows_(a.heads_per_group) {}

  __device__ bool next() {
    rows_.advance(Shape::rows);
    while (rows_.done()) {
      if (to_come_ == 0) return false;
      rows_.start(0, to_come_);
      to_come_ = 0;
    }
    return true;
  }
  __device__ std::int64_t head_row(int index) const {
    const int query = rows_.query_of(index);
    return query < rows_.end ? static_cast<std::int64_t>(list_[query]) * heads_ + first_head_ + rows_.head_of(index)
                             : -1;
  }
  __device__ KeyRange visible(int index) const { return {0, tile_.seen_by(list_[rows_.query_of(index)])}; }

 private:
  int heads_;
  const std::int32_t* list_;
  int to_come_;
  int first_head_;
  BlockTile tile_;
  RowCursor rows_;
};

struct SelectedGradients {
  SelectedQueries lists;
  BlockTensors<float> tensors;  ///< dk, dv and dpool
  Turns turns;                  ///< a place for each tile of each pair
  int segment_count;
  int tiles_per_block;  ///< ceil(m / 64)
};

/// The pair that a part belongs to.
__device__ __forceinline__ std::int32_t pair_of_part(const SelectedQueries& lists, std::int32_t part) {
  auto count = static_cast<std::int32_t>(lists.pairs);
  std::int32_t first = 0;  // first_part[first] <= part < first_part[first + count]
  while (count > 1) {
    const std::int32_t half = count / 2;
    if (lists.first_part[first + half] <= part) {
      first += half;
      count -= half;
    } else {
      count = half;
    }
  }
  return first;
}

/// The work of one thread block: some of the rows that selected a pair, and a tile of its keys.
struct SelectedPart {
  BlockTile tile{};  ///< without keys if there is no such work
  BlockLocation at = 0;
  int group = 0;
  int count = 0;  ///< rows
  const std::int32_t* rows = nullptr;
  std::int64_t place = 0;
  unsigned turn = 0;

  template <class T>
  __device__ SelectedPart(const AttentionProblem<T>& a, const SelectedTensors<T>& tensors,
                          const SelectedGradients& gradients, unsigned ticket) {
    const SelectedQueries& lists = gradients.lists;
    const auto part = static_cast<std::int32_t>(ticket / gradients.tiles_per_block);
    const int tile_of_block = static_cast<int>(ticket % gradients.tiles_per_block);
    if (part >= lists.first_part[lists.pairs]) return;
    const std::int32_t pair = pair_of_part(lists, part);
    group = tensors.head_begin + pair % lists.heads;
    at = tensors.table[static_cast<std::int64_t>(pair / lists.heads) * a.groups + group];
    turn = part - lists.first_part[pair];
    place = static_cast<std::int64_t>(pair) * gradients.tiles_per_block + tile_of_block;
    const std::int64_t begin = lists.first_row[pair] + static_cast<std::int64_t>(turn) * lists.part_queries;
    rows = lists.rows + begin;
    count = static_cast<int>(min(static_cast<std::int64_t>(lists.part_queries), lists.first_row[pair + 1] - begin));

    int keys = tensors.blocks.block_tokens;
    if (at >= 0) {  // the last block of a document may be shorter
      const Segment& segment = segment_of_row(a.segments, gradients.segment_count, at);
      keys = static_cast<int>(min(static_cast<std::int64_t>(keys), segment.row + segment.rows - at));
    }
    const int first = tile_of_block * static_cast<int>(keys_per_tile);
    tile = {at, at >= 0 ? keys : 0, first, max(0, min(static_cast<int>(keys_per_tile), keys - first))};
  }
};

template <class Shape>
__global__ void __launch_bounds__(Shape::threads)
    selected_key_gradients_kernel(GradientProblem<typename Shape::T> a, SelectedTensors<typename Shape::T> tensors,
                                  SelectedGradients gradients) {
  using T = typename Shape::T;
  extern __shared__ __align__(1024) unsigned char shared[];
  __shared__ alignas(16) unsigned char part_memory[sizeof(SelectedPart)];  // registers are short
  const auto& part = *reinterpret_cast<const SelectedPart*>(part_memory);
  const unsigned ticket = gradients.turns.take_ticket();
  if (threadIdx.x == 0) ::new (static_cast<void*>(part_memory)) SelectedPart(a, tensors, gradients, ticket);
  __syncthreads();
  // A tile past a partial block's end has no keys in any part: nobody waits for it.
  if (part.tile.keys == 0) return;

  KeyGradients<Shape> keys(a, shared);
  const BlockRows<T> block(tensors.blocks, part.group);
  const auto token = [&](int r) { return part.tile.first + r; };
  keys.load_keys([&](int r) { return r < part.tile.keys ? block.key(part.at, token(r)) : nullptr; },
                 [&](int r) { return r < part.tile.keys ? block.value(part.at, token(r)) : nullptr; });
  keys.template walk<SelectingRows<Shape>>(a, part.rows, part.count, part.group, part.tile);

  const BlockRows<float> sums(gradients.tensors, part.group);
  gradients.turns.wait(part.place, part.turn);
  keys.add_to([&](int r) { return r < part.tile.keys ? const_cast<float*>(sums.key(part.at, token(r))) : nullptr; },
              [&](int r) { return r < part.tile.keys ? const_cast<float*>(sums.value(part.at, token(r))) : nullptr; });
  gradients.turns.end(part.place, part.turn);
}

std::int64_t tiles_per_block(const Config& config) {
  return (config.select_block + keys_per_tile - 1) / keys_per_tile;
}

}  // namespace

std::size_t selected_attention_backward_scratch_bytes(const ProblemSize& size) {
  if (!size.backward || size.rows == 0) return 0;
  return selected_queries_bytes(size) +
         Turns::bytes(size.blocks * size.config->num_kv_heads * tiles_per_block(*size.config));
}

void selected_attention_backward(const SelectedAttentionBackward& a, cudaStream_t stream) {
  const CudaSegmentSchedule& schedule = cuda_schedule(a.queries);
  if (schedule.rows == 0 || a.head_begin == a.head_end) return;
  visit_shape<QueryGradientShape>(a, [&]<class Shape>(std::type_identity<Shape>) {
    const auto tensors = selected_tensors<Shape>(a);
    launch_query_gradients<Shape>(selected_query_gradients_kernel<Shape>, a,
                                  Shape::shared_bytes + tensors.union_bytes(), a.head_end - a.head_begin, stream,
                                  tensors);
  });

  const SelectedQueries lists = list_selected_queries(a, stream);
  const std::int64_t tiles = tiles_per_block(*a.config);
  check(cudaMemsetAsync(lists.rest, 0, Turns::bytes(lists.pairs * tiles), stream), "cudaMemsetAsync");
  visit_shape<KeyGradientShape>(a, [&]<class Shape>(std::type_identity<Shape>) {
    static_assert(Shape::keys == keys_per_tile);
    BlockTensors<float> sums{};
    sums.k = static_cast<const float*>(a.dk);
    sums.v = static_cast<const float*>(a.dv);
    sums.pool = static_cast<const float*>(a.dpool);
    const auto tensors = selected_tensors<Shape>(a);
    sums.groups = tensors.blocks.groups;
    sums.dk = tensors.blocks.dk;
    sums.dv = tensors.blocks.dv;
    sums.block_tokens = tensors.blocks.block_tokens;
    const SelectedGradients gradients{lists, sums, Turns(lists.rest), static_cast<int>(schedule.segments.size()),
                                      static_cast<int>(tiles)};
    launch_key_gradients<Shape>(selected_key_gradients_kernel<Shape>, a,
                                dim3(static_cast<unsigned>(lists.most_parts * tiles)), stream, tensors, gradients);
  });
}

}  // namespace cpnsa::cuda
