#include "kernels/cuda/sm90/attention/attention_launch.cuh"
#include "kernels/cuda/sm90/attention/summary_source.cuh"
#include "kernels/cuda/sm90/run_op.hpp"

namespace cpnsa::cuda::sm90 {

template <>
void run_op(const CompressedAttention& a, const Gpu& gpu, cudaStream_t stream) {
  visit_dense_shape<AttentionShape>(a, [&]<class Shape>(std::type_identity<Shape>) {
    using Walk = SummaryWalk<Shape::keys>;
    const auto [keys, values] = summary_maps(a, Shape::keys);
    launch_attention<Shape, Walk>(a, typename Walk::Parameters{{keys}, {values}, SummaryRule(*a.config)}, gpu, stream);
  });
}

}  // namespace cpnsa::cuda::sm90
