#pragma once

// How a score and its gradient follow from the statistics of a row, for the backward kernels of every GPU.
//
// A row is a (query, head). P = exp(scale S - log_sum_exp), dP = weight dout V^T, dS = P (dP - delta). The softmax
// scale of dS is applied to the sums that dS goes into, and the branch's weight to float32 products, so that neither
// rounds what the tensor cores read.

#include <cmath>
#include <cstdint>

#include "kernels/cuda/sm80/attention/attention_tile.cuh"

namespace cpnsa::cuda::sm80 {

/// P and dS of one score.
struct ScoreGradient {
  float p;
  float ds;

  /// `sum_log2`: the row's log-sum-exp in base 2. A key that the row does not see gives 0.
  __device__ __forceinline__ ScoreGradient(float score, float scale_log2, float sum_log2, float weighted_dp,
                                           float delta, bool seen)
      : p(seen ? ptx::exp2_approximate(score * scale_log2 - sum_log2) : 0.f),
        ds(seen ? p * (weighted_dp - delta) : 0.f) {}
};

__device__ __forceinline__ void add2(float* destination, float x, float y) {
  float2 sum = *reinterpret_cast<const float2*>(destination);
  sum.x += x;
  sum.y += y;
  *reinterpret_cast<float2*>(destination) = sum;
}

}  // namespace cpnsa::cuda::sm80
