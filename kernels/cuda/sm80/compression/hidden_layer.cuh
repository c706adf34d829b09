#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/common/activation.cuh"
#include "kernels/cuda/common/numeric.cuh"

namespace cpnsa::cuda::sm80 {

inline constexpr int hidden_threads = 256;

/// h = act(z + b1); with `KeepsSlope`, z becomes the activation's slope there. A thread block: one summary of one head;
/// rows past the chunk have z = 0 and are computed like the others.
template <class T, bool KeepsSlope>
__global__ void __launch_bounds__(hidden_threads)
    hidden_kernel(Activation activation, int columns,
                  std::conditional_t<KeepsSlope, float, const float>* __restrict__ z, const T* __restrict__ b1,
                  T* __restrict__ hidden) {
  const std::int64_t row = (static_cast<std::int64_t>(blockIdx.y) * gridDim.x + blockIdx.x) * columns;
  for (int c = static_cast<int>(threadIdx.x); c < columns; c += hidden_threads) {
    const float bias = b1 ? widen(b1[static_cast<std::int64_t>(blockIdx.y) * columns + c]) : 0.0f;
    const ActivationAt at = activate(activation, z[row + c] + bias);
    hidden[row + c] = narrow<T>(at.value);
    if constexpr (KeepsSlope) z[row + c] = at.slope;
  }
}

}  // namespace cpnsa::cuda::sm80
