#include <algorithm>
#include <cstdint>

#include "cpnsa/error.hpp"
#include "kernels/cuda/common/check.hpp"
#include "kernels/cuda/common/numeric.cuh"
#include "kernels/cuda/common/run_op.hpp"

namespace cpnsa::cuda {
namespace {

constexpr int block_threads = 256;
constexpr std::int64_t max_blocks_x = 1024;   // of a range, beyond which threads take more
constexpr std::int64_t max_blocks_y = 65535;  // the limit of CUDA

struct Angles {
  const float* cos;
  const float* sin;
  std::int64_t heads;
  std::int64_t dim;
  std::int64_t pairs;
  bool interleaved;
  float sign;
};

__device__ __forceinline__ float wide(float x) {
  return x;
}
template <class T>
__device__ __forceinline__ float wide(T x) {
  return widen(x);
}
template <class T>
__device__ __forceinline__ void put(T& to, float x) {
  to = narrow<T>(x);
}
__device__ __forceinline__ void put(float& to, float x) {
  to = x;
}

// blockIdx.y walks the ranges, blockIdx.x the pairs of one.
template <class T>
__global__ void __launch_bounds__(block_threads)
    rotate_rows_kernel(T* data, const Angles a, const RowRange* __restrict__ ranges, std::int64_t count) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * block_threads, per_row = a.heads * a.pairs;
  for (std::int64_t r = blockIdx.y; r < count; r += gridDim.y) {
    const RowRange range = ranges[r];
    for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * block_threads + threadIdx.x;
         i < range.count * per_row; i += step) {
      const std::int64_t row = i / per_row, head = i % per_row / a.pairs, pair = i % a.pairs;
      const std::int64_t angle = (range.source + row) * a.pairs + pair;
      const float c = a.cos[angle], s = a.sign * a.sin[angle];
      T* const first = data + ((range.destination + row) * a.heads + head) * a.dim + (a.interleaved ? 2 * pair : pair);
      T* const second = first + (a.interleaved ? 1 : a.pairs);
      const float x = wide(*first), y = wide(*second);
      put(*first, x * c - y * s);
      put(*second, x * s + y * c);
    }
  }
}

template <class T>
void launch(const RotateRows& a, cudaStream_t stream) {
  std::int64_t max_count = 0;
  for (std::int64_t r = 0; r < a.ranges.count; ++r) max_count = std::max(max_count, a.ranges.host[r].count);
  const std::int64_t items = max_count * a.heads * a.pairs;
  if (items == 0) return;
  const dim3 blocks(static_cast<unsigned>(std::min((items + block_threads - 1) / block_threads, max_blocks_x)),
                    static_cast<unsigned>(std::min(a.ranges.count, max_blocks_y)));
  const Angles angles{
      static_cast<const float*>(a.cos), static_cast<const float*>(a.sin), a.heads, a.dim, a.pairs, a.interleaved,
      a.inverse ? -1.0f : 1.0f};
  rotate_rows_kernel<T>
      <<<blocks, block_threads, 0, stream>>>(static_cast<T*>(a.data), angles, a.ranges.device, a.ranges.count);
}

}  // namespace

template <>
void run_op(const RotateRows& a, cudaStream_t stream) {
  switch (a.dtype) {
    case DType::f32: launch<float>(a, stream); break;
    case DType::bf16: launch<__nv_bfloat16>(a, stream); break;
    case DType::f16: launch<__half>(a, stream); break;
    default: throw ArgumentError("rotate_rows: found dtype f64, expected f32, bf16 or f16");
  }
  check_launch("rotate_rows");
}

}  // namespace cpnsa::cuda
