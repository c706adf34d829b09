#include "kernels/cuda/common/check.hpp"
#include "kernels/cuda/common/packs.cuh"
#include "kernels/cuda/sm80/run_op.hpp"

namespace cpnsa::cuda::sm80 {
namespace {

constexpr int block_threads = 256;

// A thread: eight channels of one head. threadIdx.x counts the packs of a head, threadIdx.y heads. The log-sum-exp of a
// head is written when all of its threads have read it.
template <class T>
__global__ void __launch_bounds__(block_threads)
    add_sinks_kernel(const T* sinks, T* out, float* log_sum_exp, std::int64_t head_rows, int num_q_heads) {
  const std::int64_t head = static_cast<std::int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  const bool given = head < head_rows;
  float after = 0;
  if (given) {
    const float sink = widen(sinks[head % num_q_heads]), before = log_sum_exp[head], difference = sink - before;
    after = difference > 0 ? sink + log1pf(expf(-difference)) : before + log1pf(expf(difference));
    const float factor = expf(before - after);
    T* const row = out + head * blockDim.x * pack_items;
    LayerPack<T> pack = load_pack(row, static_cast<int>(threadIdx.x));
#pragma unroll
    for (int i = 0; i < pack_items; ++i) pack.item[i] = narrow<T>(factor * widen(pack.item[i]));
    store_pack(row, static_cast<int>(threadIdx.x), pack);
  }
  __syncthreads();
  if (given && threadIdx.x == 0) log_sum_exp[head] = after;
}

}  // namespace

template <>
void run_op(const AddSinks& a, cudaStream_t stream) {
  const std::int64_t head_rows = a.rows * a.config->num_q_heads;
  if (head_rows == 0) return;
  const auto packs = static_cast<unsigned>(a.config->head_dim_v / pack_items);
  const dim3 threads(packs, block_threads / packs);
  const auto blocks = static_cast<unsigned>((head_rows + threads.y - 1) / threads.y);
  visit_type(a.dtype, [&]<class T>(std::type_identity<T>) {
    add_sinks_kernel<T><<<blocks, threads, 0, stream>>>(static_cast<const T*>(a.sinks), static_cast<T*>(a.out),
                                                        static_cast<float*>(a.log_sum_exp), head_rows,
                                                        static_cast<int>(a.config->num_q_heads));
  });
  check_launch("add_sinks");
}

}  // namespace cpnsa::cuda::sm80
