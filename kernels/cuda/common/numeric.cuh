#pragma once

// The layer's types in kernels: bfloat16 and float16 storage, float32 arithmetic.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace cpnsa::cuda {

__device__ __forceinline__ float widen(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
__device__ __forceinline__ float widen(__half x) {
  return __half2float(x);
}

template <class T>
__device__ __forceinline__ T narrow(float x);
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ __half narrow<__half>(float x) {
  return __float2half_rn(x);
}

/// Two neighbours of a row in one register, `low` first in memory.
template <class T>
__device__ __forceinline__ std::uint32_t narrow2(float low, float high);
template <>
__device__ __forceinline__ std::uint32_t narrow2<__nv_bfloat16>(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const std::uint32_t&>(pair);
}
template <>
__device__ __forceinline__ std::uint32_t narrow2<__half>(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return reinterpret_cast<const std::uint32_t&>(pair);
}

inline constexpr float log2_e = 1.44269504088896340736f;
inline constexpr float ln_2 = 0.69314718055994530942f;

}  // namespace cpnsa::cuda
