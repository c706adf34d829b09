#include "kernels/cuda/attention_launch_sm90.cuh"
#include "kernels/cuda/window_walk_sm90.cuh"

namespace cpnsa::cuda::sm90 {
namespace {

/// Three tiles of 176 keys cover the 519 that 8 neighbours with windows of 512 see; 192 channels leave no room for
/// them.
template <class T, int Dk, int Dv>
using WindowShape = AttentionShape<T, Dk, Dv, Dk == 192 ? 128 : 176>;

}  // namespace

void window_attention(const WindowAttention& a, cudaStream_t stream) {
  visit_shape<WindowShape>(a, [&]<class Shape>(std::type_identity<Shape>) {
    using Walk = WindowWalk<Shape::keys>;
    launch_attention<Shape, Walk>(a, typename Walk::Parameters{window_maps(a, Shape::keys), window_of(*a.config)},
                                  stream);
  });
}

}  // namespace cpnsa::cuda::sm90
