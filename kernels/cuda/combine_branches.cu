#include "kernels/cuda/check.hpp"
#include "kernels/cuda/gate.cuh"
#include "kernels/cuda/packs.cuh"
#include "kernels/cuda/stage_functions.hpp"

namespace cpnsa::cuda {
namespace {

constexpr int block_threads = 256;

template <class T>
struct Arguments {
  GateKind kind;
  std::int64_t heads;  // rows H
  const T* gate;       // [heads, 3]
  const T* o_cmp;      // [heads, dv]
  const T* o_slc;
  const T* o_win;
  T* out;
};

// A thread: eight channels of one head. threadIdx.x counts the packs of a head, threadIdx.y heads.
template <class T>
__global__ void __launch_bounds__(block_threads) combine_branches_kernel(const Arguments<T> a) {
  const std::int64_t head = static_cast<std::int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (head >= a.heads) return;
  const std::int64_t first = head * blockDim.x * pack_items;
  const LayerPack<T> cmp = load_pack(a.o_cmp + first, threadIdx.x);
  const LayerPack<T> slc = load_pack(a.o_slc + first, threadIdx.x);
  const LayerPack<T> win = load_pack(a.o_win + first, threadIdx.x);
  float gate[3];
#pragma unroll
  for (int branch = 0; branch < 3; ++branch) gate[branch] = gate_value(a.kind, widen(a.gate[3 * head + branch]));

  // out = g0 o_cmp + g1 o_slc + g2 o_win
  LayerPack<T> out;
#pragma unroll
  for (int i = 0; i < pack_items; ++i)
    out.item[i] = narrow<T>(gate[0] * widen(cmp.item[i]) + gate[1] * widen(slc.item[i]) + gate[2] * widen(win.item[i]));
  store_pack(a.out + first, threadIdx.x, out);
}

}  // namespace

void combine_branches(const CombineBranches& a, cudaStream_t stream) {
  const std::int64_t heads = a.rows * a.config->num_q_heads;
  if (heads == 0) return;
  const auto packs = static_cast<unsigned>(a.config->head_dim_v / pack_items);
  const dim3 threads(packs, block_threads / packs);
  const auto blocks = static_cast<unsigned>((heads + threads.y - 1) / threads.y);
  visit_layer_type(a.dtype, [&]<class T>(std::type_identity<T>) {
    const Arguments<T> arguments{a.config->gate,
                                 heads,
                                 static_cast<const T*>(a.gate),
                                 static_cast<const T*>(a.o_cmp),
                                 static_cast<const T*>(a.o_slc),
                                 static_cast<const T*>(a.o_win),
                                 static_cast<T*>(a.out)};
    combine_branches_kernel<T><<<blocks, threads, 0, stream>>>(arguments);
  });
  check_launch("combine_branches");
}

}  // namespace cpnsa::cuda
