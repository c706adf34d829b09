#pragma once

#include "cpnsa/config.hpp"
#include "kernels/cuda/common/gate.cuh"

namespace cpnsa::cuda {

/// An activation and its derivative at z. NaN stays NaN.
struct ActivationAt {
  float value;
  float slope;
};

__device__ __forceinline__ ActivationAt activate(Activation activation, float z) {
  switch (activation) {
    case Activation::relu: return {z < 0.0f ? 0.0f : z, z > 0.0f ? 1.0f : z == z ? 0.0f : z};
    case Activation::gelu: {
      constexpr float sqrt_2_over_pi = 0.79788456080286535588f, cubic = 0.044715f;
      const float t = tanhf(sqrt_2_over_pi * (z + cubic * z * z * z));
      const float inner_slope = sqrt_2_over_pi * (1.0f + 3.0f * cubic * z * z);
      return {0.5f * z * (1.0f + t), 0.5f * (1.0f + t) + 0.5f * z * (1.0f - t * t) * inner_slope};
    }
    case Activation::silu: break;
  }
  const float s = sigmoid(z);
  return {z * s, s * (1.0f + z * (1.0f - s))};
}

}  // namespace cpnsa::cuda
