#include <bit>

#include "kernels/cuda/common/check.hpp"
#include "kernels/cuda/common/gate.cuh"
#include "kernels/cuda/common/packs.cuh"
#include "kernels/cuda/sm80/run_op.hpp"

namespace cpnsa::cuda::sm80 {
namespace {

constexpr int block_threads = 256;

template <class T>
struct Arguments {
  GateKind kind;
  std::int64_t head_rows;  // rows H
  int packs;               // d_v / pack_items, at most a warp
  int lanes;               // threads of a head: a power of two, at least packs and the three branches
  const T* gate;           // [heads, 3]
  const T* o_cmp;          // [heads, d_v]
  const T* o_slc;
  const T* o_win;
  const T* dout;
  float* dgate;    // [heads, 3]
  float* weights;  // [3, heads]
  float* deltas;   // [3, heads]
};

template <class T>
__device__ __forceinline__ float dot(const LayerPack<T>& x, const LayerPack<T>& y) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < pack_items; ++i) sum += widen(x.item[i]) * widen(y.item[i]);
  return sum;
}

// `lanes` neighbouring threads take one head: each the products of eight channels, then lane b writes branch b.
template <class T>
__global__ void __launch_bounds__(block_threads) combine_branches_backward_kernel(const Arguments<T> a) {
  const int lane = static_cast<int>(threadIdx.x) % a.lanes;
  const std::int64_t head =
      static_cast<std::int64_t>(blockIdx.x) * (block_threads / a.lanes) + static_cast<int>(threadIdx.x) / a.lanes;
  float cmp = 0, slc = 0, win = 0;  // sum_c dout o_b
  if (head < a.head_rows && lane < a.packs) {
    const std::int64_t first = head * a.packs * pack_items;
    const LayerPack<T> dout = load_pack(a.dout + first, lane);
    cmp = dot(dout, load_pack(a.o_cmp + first, lane));
    slc = dot(dout, load_pack(a.o_slc + first, lane));
    win = dot(dout, load_pack(a.o_win + first, lane));
  }
  for (int offset = a.lanes / 2; offset > 0; offset /= 2) {
    cmp += __shfl_xor_sync(0xffffffffu, cmp, offset);
    slc += __shfl_xor_sync(0xffffffffu, slc, offset);
    win += __shfl_xor_sync(0xffffffffu, win, offset);
  }
  if (head >= a.head_rows || lane >= 3) return;
  const float product = lane == 0 ? cmp : lane == 1 ? slc : win;
  const float value = gate_value(a.kind, widen(a.gate[3 * head + lane]));
  a.dgate[3 * head + lane] = product * gate_slope(a.kind, value);
  a.weights[lane * a.head_rows + head] = value;
  a.deltas[lane * a.head_rows + head] = value * product;
}

}  // namespace

template <>
void run_op(const CombineBranchesBackward& a, cudaStream_t stream) {
  const std::int64_t heads = a.rows * a.config->num_q_heads;
  if (heads == 0) return;
  const auto packs = static_cast<unsigned>(a.config->head_dim_v / pack_items);
  const unsigned lanes = std::bit_ceil(packs < 3 ? 3u : packs);
  const std::int64_t heads_per_block = block_threads / lanes;
  const auto blocks = static_cast<unsigned>((heads + heads_per_block - 1) / heads_per_block);
  visit_type(a.dtype, [&]<class T>(std::type_identity<T>) {
    const Arguments<T> arguments{a.config->gate,
                                 heads,
                                 static_cast<int>(packs),
                                 static_cast<int>(lanes),
                                 static_cast<const T*>(a.gate),
                                 static_cast<const T*>(a.o_cmp),
                                 static_cast<const T*>(a.o_slc),
                                 static_cast<const T*>(a.o_win),
                                 static_cast<const T*>(a.dout),
                                 static_cast<float*>(a.dgate),
                                 static_cast<float*>(a.weights),
                                 static_cast<float*>(a.deltas)};
    combine_branches_backward_kernel<T><<<blocks, block_threads, 0, stream>>>(arguments);
  });
  check_launch("combine_branches_backward");
}

}  // namespace cpnsa::cuda::sm80
