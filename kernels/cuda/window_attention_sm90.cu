#include "kernels/cuda/attention_launch_sm90.cuh"
#include "kernels/cuda/window_walk_sm90.cuh"

namespace cpnsa::cuda::sm90 {
namespace {

/// 12 neighbours with windows of 512 see 523 keys. Reading them is as much work as the products: 8 neighbours, with a
/// warpgroup less, would read half as much again for each query.
template <class T, int Dk, int Dv>
using WindowShape = AttentionShape<T, Dk, Dv, 80, 3>;

}  // namespace

void window_attention(const WindowAttention& a, cudaStream_t stream) {
  visit_shape<WindowShape>(a, [&]<class Shape>(std::type_identity<Shape>) {
    using Walk = WindowWalk<Shape::keys>;
    launch_attention<Shape, Walk>(a, typename Walk::Parameters{window_maps(a, Shape::keys), window_of(*a.config)},
                                  stream);
  });
}

}  // namespace cpnsa::cuda::sm90
