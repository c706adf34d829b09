#pragma once

#include "cpnsa/config.hpp"

namespace cpnsa::cuda {

__device__ __forceinline__ float sigmoid(float x) {
  return 1.0f / (1.0f + expf(-x));
}

/// The gate applied.
__device__ __forceinline__ float gate_value(GateKind kind, float gate) {
  return kind == GateKind::logits ? sigmoid(gate) : gate;
}

/// d gate_value / d gate, from the value.
__device__ __forceinline__ float gate_slope(GateKind kind, float value) {
  return kind == GateKind::logits ? value * (1.0f - value) : 1.0f;
}

}  // namespace cpnsa::cuda
