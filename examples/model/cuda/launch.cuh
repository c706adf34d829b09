#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "cpnsa/tensor_view.hpp"
#include "examples/model/cuda/check.hpp"

// Pieces that the kernels share. Loops over the grid assign elements to threads, or rows to warps.
namespace model::cuda {

using Narrow = __nv_bfloat16;

inline constexpr int block_threads = 256, warp_size = 32, block_warps = block_threads / warp_size;
inline constexpr std::int64_t max_blocks = 65535;

inline unsigned blocks_for(std::int64_t items, std::int64_t items_per_block) {
  const std::int64_t blocks = (items + items_per_block - 1) / items_per_block;
  return static_cast<unsigned>(blocks < max_blocks ? blocks : max_blocks);
}

template <class Value>
Value* data(const cpnsa::TensorView& view) {
  return static_cast<Value*>(view.data);
}

__device__ inline std::int64_t first_item() {
  return static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ inline std::int64_t item_stride() {
  return static_cast<std::int64_t>(gridDim.x) * blockDim.x;
}
__device__ inline std::int64_t first_row() {
  return static_cast<std::int64_t>(blockIdx.x) * block_warps + threadIdx.x / warp_size;
}
__device__ inline std::int64_t row_stride() {
  return static_cast<std::int64_t>(gridDim.x) * block_warps;
}
__device__ inline int lane() {
  return static_cast<int>(threadIdx.x) % warp_size;
}

// All lanes get the sum; the order of summation is fixed.
__device__ inline float warp_sum(float value) {
  for (int distance = warp_size / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(~0u, value, distance);
  return value;
}

}  // namespace model::cuda
