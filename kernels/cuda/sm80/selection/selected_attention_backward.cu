#include "kernels/cuda/common/selected_parts.cuh"
#include "kernels/cuda/sm80/attention/gradient_launch.cuh"
#include "kernels/cuda/sm80/attention/row_cursor.cuh"
#include "kernels/cuda/sm80/run_op.hpp"
#include "kernels/cuda/sm80/selection/selected_source.cuh"

namespace cpnsa::cuda::sm80 {
namespace {

template <class Shape>
__global__ void __launch_bounds__(Shape::threads, 2)
    selected_query_gradients_kernel(GradientProblem<typename Shape::T> a, SelectedTensors<typename Shape::T> tensors) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const QueryTile tile = a.tiles[blockIdx.x];
  const HeadSlice slice(a, blockIdx.y, tensors.group_begin);
  SelectedSource<Shape> source(a, tile, slice.group, tensors, shared + Shape::shared_bytes);
  source.build(tile, slice.group, tensors);
  add_query_gradients<Shape>(a, tile, slice, source, ptx::shared_address(shared));
}

/// Some of the rows that selected a block.
template <class Shape>
class SelectingRows {
 public:
  __device__ SelectingRows(const AttentionProblem<typename Shape::T>& a, const std::int32_t* list, int count, int group,
                           const BlockTile& tile)
      : heads_(a.num_q_heads),
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

template <class Shape>
__global__ void __launch_bounds__(Shape::threads)
    selected_key_gradients_kernel(GradientProblem<typename Shape::T> a, SelectedTensors<typename Shape::T> tensors,
                                  SelectedGradients gradients) {
  using T = typename Shape::T;
  extern __shared__ __align__(1024) unsigned char shared[];
  __shared__ alignas(16) unsigned char part_memory[sizeof(SelectedPart)];  // registers are short
  const auto& part = *reinterpret_cast<const SelectedPart*>(part_memory);
  const unsigned ticket = gradients.order.next_ticket();
  if (threadIdx.x == 0) ::new (static_cast<void*>(part_memory)) SelectedPart(a, tensors, gradients, ticket);
  __syncthreads();
  // A tile past a partial block's end has no keys in any part: nobody waits for it.
  if (part.tile.keys == 0) return;

  KeyGradients<Shape> keys(a, shared);
  const BlockRows<const T> block(tensors.blocks, part.group);
  const auto token = [&](int r) { return part.tile.first + r; };
  keys.load_keys([&](int r) { return r < part.tile.keys ? block.key(part.at, token(r)) : nullptr; },
                 [&](int r) { return r < part.tile.keys ? block.value(part.at, token(r)) : nullptr; });
  keys.template walk<SelectingRows<Shape>>(a, part.rows, part.count, part.group, part.tile);

  const BlockRows<float> sums(gradients.tensors, part.group);
  gradients.order.acquire(part.slot, part.turn);
  keys.add_to([&](int r) { return r < part.tile.keys ? sums.key(part.at, token(r)) : nullptr; },
              [&](int r) { return r < part.tile.keys ? sums.value(part.at, token(r)) : nullptr; });
  gradients.order.release(part.slot, part.turn);
}

}  // namespace

std::size_t selected_attention_backward_scratch_bytes(const ProblemSize& size) {
  if (!size.backward || size.rows == 0) return 0;
  return selected_queries_bytes(size) +
         OrderedAccumulation::bytes(size.blocks * size.config->num_kv_heads * tiles_per_block(*size.config));
}

template <>
void run_op(const SelectedAttentionBackward& a, cudaStream_t stream) {
  if (cuda_schedule(a.queries).rows == 0 || a.group_begin == a.group_end) return;
  visit_shape<QueryGradientShape>(a, [&]<class Shape>(std::type_identity<Shape>) {
    const auto tensors = selected_tensors<typename Shape::T>(a, queries_per_tile(*a.config));
    launch_query_gradients<Shape>(selected_query_gradients_kernel<Shape>, a,
                                  Shape::shared_bytes + tensors.union_bytes(), a.group_end - a.group_begin, stream,
                                  tensors);
  });
  const SelectedParts parts = list_selected_parts(a, stream);
  visit_shape<KeyGradientShape>(a, [&]<class Shape>(std::type_identity<Shape>) {
    static_assert(Shape::keys == selected_tile_keys);
    const auto tensors = selected_tensors<typename Shape::T>(a, 0);
    launch_key_gradients<Shape>(selected_key_gradients_kernel<Shape>, a, dim3(static_cast<unsigned>(parts.count)),
                                stream, tensors, selected_gradients(a, parts.lists, tensors));
  });
}

}  // namespace cpnsa::cuda::sm80
