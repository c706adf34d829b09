#include "kernels/cuda/common/check.hpp"
#include "kernels/cuda/common/packs.cuh"
#include "kernels/cuda/sm80/run_op.hpp"

namespace cpnsa::cuda::sm80 {
namespace {

constexpr int block_threads = 256;

// A thread block: one head. Its threads take rows in turn, and their sums are added in a tree, so that the order of the
// rows does not depend on the GPU.
template <class T>
__global__ void __launch_bounds__(block_threads)
    add_sinks_backward_kernel(const T* sinks, const float* log_sum_exp, const float* deltas, float* dsinks,
                              std::int64_t rows, int num_q_heads) {
  __shared__ float sums[block_threads];
  const int head = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const float sink = widen(sinks[head]);
  float sum = 0;
  for (std::int64_t row = thread; row < rows; row += block_threads) {
    const std::int64_t at = row * num_q_heads + head;
    sum += expf(sink - log_sum_exp[at]) * deltas[at];
  }
  sums[thread] = sum;
  for (int others = block_threads / 2; others > 0; others /= 2) {
    __syncthreads();
    if (thread < others) sums[thread] += sums[thread + others];
  }
  if (thread == 0) dsinks[head] -= sums[0];
}

}  // namespace

template <>
void run_op(const AddSinksBackward& a, cudaStream_t stream) {
  if (a.rows == 0) return;
  const auto heads = static_cast<unsigned>(a.config->num_q_heads);
  visit_type(a.dtype, [&]<class T>(std::type_identity<T>) {
    add_sinks_backward_kernel<T><<<heads, block_threads, 0, stream>>>(
        static_cast<const T*>(a.sinks), static_cast<const float*>(a.log_sum_exp), static_cast<const float*>(a.deltas),
        static_cast<float*>(a.dsinks), a.rows, static_cast<int>(heads));
  });
  check_launch("add_sinks_backward");
}

}  // namespace cpnsa::cuda::sm80
