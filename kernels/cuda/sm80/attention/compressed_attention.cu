#include "kernels/cuda/sm80/attention/attention_launch.cuh"
#include "kernels/cuda/sm80/attention/summary_source.cuh"
#include "kernels/cuda/sm80/run_op.hpp"

namespace cpnsa::cuda::sm80 {
namespace {

template <class Shape>
__global__ void __launch_bounds__(Shape::threads)
    compressed_attention_kernel(AttentionProblem<typename Shape::T> a, Summaries<Shape> summaries) {
  extern __shared__ __align__(1024) unsigned char shared[];
  // The last tiles see most: they start first.
  const QueryTile tile = a.tiles[gridDim.x - 1 - blockIdx.x];
  const Segment& segment = a.segments[tile.segment];
  const HeadSlice slice(a, blockIdx.y);
  const SummarySource<Shape> source(a, tile, segment, slice.group, summaries);
  attend<Shape>(a, tile, slice, source, ptx::shared_address(shared));
}

}  // namespace

template <>
void run_op(const CompressedAttention& a, cudaStream_t stream) {
  visit_shape<AttentionShape>(a, [&]<class Shape>(std::type_identity<Shape>) {
    launch_attention<Shape>(compressed_attention_kernel<Shape>, a, Shape::shared_bytes, a.config->num_kv_heads, stream,
                            summary_tensors<Shape>(a));
  });
}

}  // namespace cpnsa::cuda::sm80
