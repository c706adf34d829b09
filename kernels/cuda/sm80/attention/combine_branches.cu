#include "kernels/cuda/common/check.hpp"
#include "kernels/cuda/common/combination.cuh"
#include "kernels/cuda/sm80/run_op.hpp"

namespace cpnsa::cuda::sm80 {
namespace {

constexpr int block_threads = 256;

// A thread: eight channels of one head. threadIdx.x counts the packs of a head, threadIdx.y heads.
template <class T>
__global__ void __launch_bounds__(block_threads)
    combine_branches_kernel(const Combination<T> combination, const T* o_slc, std::int64_t heads) {
  const std::int64_t head = static_cast<std::int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (head >= heads) return;
  const std::int64_t first = head * blockDim.x * pack_items;
  const auto pack = static_cast<int>(threadIdx.x);
  store_pack(combination.out + first, pack,
             combined(combination.gates(head), load_pack(combination.o_cmp + first, pack),
                      load_pack(o_slc + first, pack), load_pack(combination.o_win + first, pack)));
}

}  // namespace

template <>
void run_op(const CombineBranches& a, cudaStream_t stream) {
  const std::int64_t heads = a.rows * a.config->num_q_heads;
  if (heads == 0) return;
  const auto packs = static_cast<unsigned>(a.config->head_dim_v / pack_items);
  const dim3 threads(packs, block_threads / packs);
  const auto blocks = static_cast<unsigned>((heads + threads.y - 1) / threads.y);
  visit_type(a.dtype, [&]<class T>(std::type_identity<T>) {
    combine_branches_kernel<T>
        <<<blocks, threads, 0, stream>>>(Combination<T>(a), static_cast<const T*>(a.o_slc), heads);
  });
  check_launch("combine_branches");
}

}  // namespace cpnsa::cuda::sm80
