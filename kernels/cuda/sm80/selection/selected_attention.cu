#include "kernels/cuda/sm80/attention/attention_launch.cuh"
#include "kernels/cuda/sm80/run_op.hpp"
#include "kernels/cuda/sm80/selection/selected_source.cuh"

namespace cpnsa::cuda::sm80 {
namespace {

template <class Shape>
__global__ void __launch_bounds__(Shape::threads)
    selected_attention_kernel(AttentionProblem<typename Shape::T> a, SelectedTensors<typename Shape::T> tensors) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const QueryTile tile = a.tiles[blockIdx.x];
  const HeadSlice slice(a, blockIdx.y, tensors.group_begin);
  SelectedSource<Shape> source(a, tile, slice.group, tensors, shared + Shape::shared_bytes);
  source.build(tile, slice.group, tensors);
  attend<Shape>(a, tile, slice, source, ptx::shared_address(shared));
}

}  // namespace

template <>
void run_op(const SelectedAttention& a, cudaStream_t stream) {
  visit_shape<AttentionShape>(a, [&]<class Shape>(std::type_identity<Shape>) {
    const auto tensors = selected_tensors<typename Shape::T>(a, queries_per_tile(*a.config));
    launch_attention<Shape>(selected_attention_kernel<Shape>, a, Shape::shared_bytes + tensors.union_bytes(),
                            a.group_end - a.group_begin, stream, tensors);
  });
}

}  // namespace cpnsa::cuda::sm80
