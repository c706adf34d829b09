#pragma once

// Vectors of 32 bytes in the compiler's vector types. Every lane of every loop below runs the same instructions, so a
// row's result does not depend on its position in a tile.

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace cpnsa::cpu {

template <class A>
struct Simd {
  static constexpr std::int64_t lanes = 32 / sizeof(A);
  typedef A Vector __attribute__((vector_size(32)));

  static Vector load(const A* source) {
    Vector vector;
    std::memcpy(&vector, source, sizeof vector);
    return vector;
  }
  static void store(A* destination, Vector vector) { std::memcpy(destination, &vector, sizeof vector); }
  static Vector broadcast(A value) { return Vector{} + value; }
};

template <class A>
using Vector = typename Simd<A>::Vector;

template <class A>
Vector<A> maximum(Vector<A> a, Vector<A> b) {
  return a > b ? a : b;
}

/// The largest lane that is a number, or lane 0.
template <class A>
A horizontal_maximum(Vector<A> vector) {
  A result = vector[0];
  for (std::int64_t i = 1; i < Simd<A>::lanes; ++i) result = vector[i] > result ? vector[i] : result;
  return result;
}

/// Sums the lanes pairwise, always in the same order.
template <class A>
A horizontal_sum(Vector<A> vector) {
  for (std::int64_t width = Simd<A>::lanes / 2; width > 0; width /= 2)
    for (std::int64_t i = 0; i < width; ++i) vector[i] += vector[i + width];
  return vector[0];
}

/// exp of every lane. exp(-infinity) is 0, NaN stays NaN, and a result too large for the type becomes infinity. In
/// float, results below 2^-126 become 0.
inline Vector<float> exponential(Vector<float> x) {
  typedef std::uint32_t Integers
      __attribute__((vector_size(32)));          // may wrap, but only where the result is replaced by 0
  constexpr float round_to_integer = 0x1.8p23f;  // adding it leaves the nearest integer in the low mantissa bits
  const Vector<float> bounded = x > 88.8f ? Simd<float>::broadcast(88.8f) : x;
  const Vector<float> shifted = bounded * 0x1.715476p0f + round_to_integer;
  const Vector<float> n = shifted - round_to_integer;
  // x - n ln 2, with ln 2 in two parts
  const Vector<float> r = (bounded - n * 0.693359375f) - n * -2.12194440e-4f;
  // (exp(r) - 1 - r) / r^2 for |r| <= ln 2 / 2, minimax
  Vector<float> p = Simd<float>::broadcast(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const Integers power_of_two = (std::bit_cast<Integers>(shifted) << 23) + 0x3f800000u;
  const Vector<float> result = p * std::bit_cast<Vector<float>>(power_of_two);
  return x < -87.3f ? Vector<float>{} : result;
}

inline Vector<double> exponential(Vector<double> x) {
  for (std::int64_t i = 0; i < Simd<double>::lanes; ++i) x[i] = std::exp(x[i]);
  return x;
}

}  // namespace cpnsa::cpu
