#pragma once

// Storage types of tensors, the type that arithmetic on them uses, and the dispatch from a DType to both.

#include <bit>
#include <cmath>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>

#include "cpnsa/dtype.hpp"
#include "cpnsa/error.hpp"

namespace cpnsa::cpu {

struct Bfloat16 {
  std::uint16_t bits;
};

struct Float16 {
  std::uint16_t bits;
};

/// The type that arithmetic on tensors of storage type T uses; its DType is accumulate_dtype().
template <class T>
using Arithmetic = std::conditional_t<std::is_same_v<T, double>, double, float>;

inline double widen(double x) {
  return x;
}
inline float widen(float x) {
  return x;
}
inline float widen(Bfloat16 x) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(x.bits) << 16);
}

inline float widen(Float16 x) {
  // The half's exponent and mantissa, read as a float's, are 2^112 too small; that also normalises subnormals.
  const std::uint32_t magnitude = static_cast<std::uint32_t>(x.bits & 0x7fff) << 13;
  const std::uint32_t scaled = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f);
  const std::uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;  // infinity and NaN keep their mantissa
  return std::bit_cast<float>(scaled | special | static_cast<std::uint32_t>(x.bits & 0x8000) << 16);
}

template <class T>
T narrow(float x);

template <>
inline double narrow<double>(float x) {
  return x;
}

template <>
inline float narrow<float>(float x) {
  return x;
}

template <>
inline Bfloat16 narrow<Bfloat16>(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const std::uint32_t quiet_nan = (bits >> 16) | 0x40u;
  return {static_cast<std::uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded)};
}

template <>
inline Float16 narrow<Float16>(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  std::uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // below 2^-14: adding 1/2 leaves the subnormal's bits, rounded, at the end
    half = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  return {static_cast<std::uint16_t>(half | (bits >> 16 & 0x8000u))};
}

template <class T>
T narrow(double x) {
  if constexpr (std::is_same_v<T, double>) {
    return x;
  } else if constexpr (std::is_same_v<T, float>) {
    return static_cast<float>(x);
  } else {
    // Rounds to odd in float first, so that the second rounding gives the correctly rounded result.
    float nearest = static_cast<float>(x);
    if (!std::isnan(x) && static_cast<double>(nearest) != x) {
      std::uint32_t bits = std::bit_cast<std::uint32_t>(nearest);
      if (std::abs(static_cast<double>(nearest)) > std::abs(x)) --bits;
      nearest = std::bit_cast<float>(bits | 1u);
    }
    return narrow<T>(nearest);
  }
}

/// Calls function(std::type_identity<T>{}) with the storage type of `dtype`.
template <class Function>
void visit(DType dtype, Function&& function) {
  switch (dtype) {
    case DType::f64: return function(std::type_identity<double>{});
    case DType::f32: return function(std::type_identity<float>{});
    case DType::bf16: return function(std::type_identity<Bfloat16>{});
    case DType::f16: return function(std::type_identity<Float16>{});
  }
  throw ArgumentError("dtype: found " + std::to_string(static_cast<int>(dtype)) + ", expected f64, f32, bf16 or f16");
}

}  // namespace cpnsa::cpu
