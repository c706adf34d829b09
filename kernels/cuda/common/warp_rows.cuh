#pragma once

// The work of one warp on 16 (query, head) rows: S = Q Kᵀ, the online softmax, O += P V. The building block of the
// portable attention kernels; a kernel adds which keys there are and which of them a row sees.
//
// Fragments are mma.sync's: lane i holds rows i / 4 and i / 4 + 8 of its 16, and of each 8 columns the two from
// 2 (i % 4) on.

#include <cmath>
#include <cstdint>

#include "kernels/cuda/common/numeric.cuh"
#include "kernels/cuda/common/swizzled_tile.cuh"

namespace cpnsa::cuda {

/// The running softmax of the two rows that a lane shares with three others: base 2, scores already times
/// scale log2(e). `maximum` is -infinity while a row has seen no key; `sum` is this lane's part only.
struct SoftmaxRows {
  float maximum[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0.f, 0.f};

  /// Sums over the four lanes of a row.
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 1);
      sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 2);
    }
  }

  /// After finish(): the factor of the row's output; 0 for a row that saw no key.
  __device__ __forceinline__ float inverse_sum(int half) const {
    return maximum[half] == -INFINITY ? 0.f : 1.f / sum[half];
  }
  /// After finish(): natural logarithm; -infinity for a row that saw nothing, NaN for one that saw NaN.
  __device__ __forceinline__ float log_sum_exp(int half) const {
    if (isnan(sum[half])) return sum[half];
    return maximum[half] == -INFINITY ? -INFINITY : (maximum[half] + log2f(sum[half])) * ln_2;
  }
};

/// S[16 x Keys] = Q Kᵀ. `first_row`: the warp's first row in the query tile. `keys` is where the first key lies in its
/// tile, at a multiple of 8 rows; there may be fewer keys than the tile has.
template <class T, class QueryTile, class KeyTile, int KeyColumns>
__device__ __forceinline__ void multiply_keys(float (&s)[KeyColumns][4], std::uint32_t queries, int first_row,
                                              std::uint32_t keys) {
  static_assert(QueryTile::chunks == KeyTile::chunks && KeyColumns % 2 == 0);
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (auto& column : s)
#pragma unroll
    for (float& value : column) value = 0.f;
  const std::uint32_t query = queries + QueryTile::offset(first_row + lane % 16, lane / 16);
  const std::uint32_t key = keys + KeyTile::offset(lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
  for (int step = 0; step < QueryTile::chunks / 2; ++step) {  // 16 channels each
    std::uint32_t a[4];
    ptx::ldmatrix_x4(a, QueryTile::advance(query, 0, step * 2));
#pragma unroll
    for (int n = 0; n < KeyColumns / 2; ++n) {  // 16 keys each
      std::uint32_t b[4];
      ptx::ldmatrix_x4(b, KeyTile::advance(key, n * 2, step * 2));
      ptx::mma_m16n8k16<T>(s[2 * n], a, b[0], b[1]);
      ptx::mma_m16n8k16<T>(s[2 * n + 1], a, b[2], b[3]);
    }
  }
}

/// S[16 x Keys] = Q Kᵀ with the queries in registers.
template <class T, class KeyTile, int Steps, int KeyColumns>
__device__ __forceinline__ void multiply_keys(float (&s)[KeyColumns][4], const std::uint32_t (&q)[Steps][4],
                                              std::uint32_t keys) {
  static_assert(Steps * 2 == KeyTile::chunks && KeyColumns % 2 == 0);
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (auto& column : s)
#pragma unroll
    for (float& value : column) value = 0.f;
  const std::uint32_t key = keys + KeyTile::offset(lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
  for (int step = 0; step < Steps; ++step) {  // 16 channels each
#pragma unroll
    for (int n = 0; n < KeyColumns / 2; ++n) {  // 16 keys each
      std::uint32_t b[4];
      ptx::ldmatrix_x4(b, KeyTile::advance(key, n * 2, step * 2));
      ptx::mma_m16n8k16<T>(s[2 * n], q[step], b[0], b[1]);
      ptx::mma_m16n8k16<T>(s[2 * n + 1], q[step], b[2], b[3]);
    }
  }
}

/// O[16 x Dim] += P V, P[16 x Keys] in the fragments that multiply_keys() leaves scores in.
template <class T, class ValueTile, int Columns, int KeyColumns>
__device__ __forceinline__ void multiply_values(float (&o)[Columns][4], const float (&p)[KeyColumns][4],
                                                std::uint32_t values) {
  static_assert(Columns == ValueTile::chunks);
  const int lane = threadIdx.x % 32;
  const std::uint32_t value = values + ValueTile::offset(lane % 16, lane / 16);
#pragma unroll
  for (int step = 0; step < KeyColumns / 2; ++step) {  // 16 keys each
    const std::uint32_t a[4] = {narrow2<T>(p[2 * step][0], p[2 * step][1]), narrow2<T>(p[2 * step][2], p[2 * step][3]),
                                narrow2<T>(p[2 * step + 1][0], p[2 * step + 1][1]),
                                narrow2<T>(p[2 * step + 1][2], p[2 * step + 1][3])};
#pragma unroll
    for (int n = 0; n < Columns / 2; ++n) {  // 16 channels each
      std::uint32_t b[4];
      ptx::ldmatrix_x4_transposed(b, ValueTile::advance(value, step * 2, n * 2));
      ptx::mma_m16n8k16<T>(o[2 * n], a, b[0], b[1]);
      ptx::mma_m16n8k16<T>(o[2 * n + 1], a, b[2], b[3]);
    }
  }
}

/// The greatest of `maximum` and this lane's scores of a row.
template <int KeyColumns>
__device__ __forceinline__ float lane_maximum(const float (&s)[KeyColumns][4], int half, float maximum) {
#pragma unroll
  for (int n = 0; n < KeyColumns; ++n) maximum = fmaxf(maximum, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
  return maximum;
}

/// The greatest of 0 and this lane's scores of a row, or NaN if one is, unless its sign bit is set: numbers that are
/// not negative are ordered as their bits are, of which an instruction compares three.
template <int KeyColumns>
__device__ __forceinline__ float positive_maximum(const float (&s)[KeyColumns][4], int half) {
  int maximum = 0;
#pragma unroll
  for (int n = 0; n < KeyColumns; ++n)
    maximum = __vimax3_s32(maximum, __float_as_int(s[n][2 * half]), __float_as_int(s[n][2 * half + 1]));
  return __int_as_float(maximum);
}

/// The greatest of the four lanes that share a row.
__device__ __forceinline__ float row_maximum(float maximum) {
  maximum = fmaxf(maximum, __shfl_xor_sync(0xffffffffu, maximum, 1));
  return fmaxf(maximum, __shfl_xor_sync(0xffffffffu, maximum, 2));
}

/// Takes scores (base 2, -infinity where masked) of the next keys: p = 2^(s - maximum), and what was summed so far is
/// rescaled to the new maximum. Where a row has still seen nothing, p is 0.
template <int KeyColumns, int Columns>
__device__ __forceinline__ void online_softmax(SoftmaxRows& state, float (&s)[KeyColumns][4], float (&o)[Columns][4]) {
  float rescale[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float maximum = row_maximum(lane_maximum(s, half, state.maximum[half]));
    // (-infinity) - (-infinity) is avoided: an unseen row subtracts 0 and gets exp2(-infinity) = 0.
    const float base = maximum == -INFINITY ? 0.f : maximum;
    rescale[half] = ptx::exp2_approximate(state.maximum[half] - base);
    state.maximum[half] = maximum;
    float sum = 0.f;
#pragma unroll
    for (int n = 0; n < KeyColumns; ++n)
#pragma unroll
      for (int column = 0; column < 2; ++column) {
        float& value = s[n][2 * half + column];
        value = ptx::exp2_approximate(value - base);
        sum += value;
      }
    state.sum[half] = state.sum[half] * rescale[half] + sum;
  }
  // Most tiles raise no maximum; multiplying by 1 would change nothing.
  if (__any_sync(0xffffffffu, rescale[0] != 1.f || rescale[1] != 1.f)) {
#pragma unroll
    for (int n = 0; n < Columns; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) o[n][i] *= rescale[i / 2];
  }
}

/// The same for scores that are not scaled yet, by a scale that is not negative. A maximum rises only where one of the
/// warp's scores exceeds that of its row by more than 8, so p is relative to a maximum that may be stale. Returns true
/// where a maximum rose: the caller then multiplies O by `rescale`.
template <int KeyColumns>
__device__ __forceinline__ bool online_softmax_lazy_rescale(SoftmaxRows& state, float (&s)[KeyColumns][4],
                                                            float scale_log2, float (&rescale)[2]) {
  constexpr float tolerated = 8.f;  // p stays below 2^8, which bfloat16 and float16 hold as well as numbers below 1
  const auto exceeds = [&](int half, float maximum) { return !(maximum <= state.maximum[half] + tolerated); };
  const bool may_rise =
      exceeds(0, positive_maximum(s, 0) * scale_log2) | exceeds(1, positive_maximum(s, 1) * scale_log2);
  bool rises = false;
  if (__any_sync(0xffffffffu, may_rise)) {
    float maximum[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) maximum[half] = row_maximum(lane_maximum(s, half, -INFINITY) * scale_log2);
    rises =
        __any_sync(0xffffffffu, maximum[0] > state.maximum[0] + tolerated || maximum[1] > state.maximum[1] + tolerated);
    if (rises) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        maximum[half] = fmaxf(maximum[half], state.maximum[half]);
        rescale[half] = ptx::exp2_approximate(state.maximum[half] - (maximum[half] == -INFINITY ? 0.f : maximum[half]));
        state.maximum[half] = maximum[half];
        state.sum[half] *= rescale[half];
      }
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float base = state.maximum[half] == -INFINITY ? 0.f : state.maximum[half];
    float sum = 0.f;
#pragma unroll
    for (int n = 0; n < KeyColumns; ++n)
#pragma unroll
      for (int column = 0; column < 2; ++column) {
        float& value = s[n][2 * half + column];
        value = ptx::exp2_approximate(fmaf(value, scale_log2, -base));
        sum += value;
      }
    state.sum[half] += sum;
  }
  return rises;
}

/// O after online_softmax_lazy_rescale() said so.
template <int Columns>
__device__ __forceinline__ void rescale_output(float (&o)[Columns][4], const float (&rescale)[2]) {
#pragma unroll
  for (int n = 0; n < Columns; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) o[n][i] *= rescale[i / 2];
}

}  // namespace cpnsa::cuda
