#include "kernels/cuda/sm80/attention/attention_launch.cuh"
#include "kernels/cuda/sm80/attention/window_source.cuh"
#include "kernels/cuda/sm80/run_op.hpp"

namespace cpnsa::cuda::sm80 {
namespace {

template <class Shape>
__global__ void __launch_bounds__(Shape::threads)
    window_attention_kernel(AttentionProblem<typename Shape::T> a, WindowTensors<Shape> tensors) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const QueryTile tile = a.tiles[blockIdx.x];
  const Segment& segment = a.segments[tile.segment];
  const HeadSlice slice(a, blockIdx.y);
  const WindowSource<Shape> source(a, tile, segment, slice.group, tensors);
  attend<Shape>(a, tile, slice, source, ptx::shared_address(shared));
}

}  // namespace

template <>
void run_op(const WindowAttention& a, cudaStream_t stream) {
  visit_shape<AttentionShape>(a, [&]<class Shape>(std::type_identity<Shape>) {
    launch_attention<Shape>(window_attention_kernel<Shape>, a, Shape::shared_bytes, a.config->num_kv_heads, stream,
                            window_tensors<Shape>(a));
  });
}

}  // namespace cpnsa::cuda::sm80
