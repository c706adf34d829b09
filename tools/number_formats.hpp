#pragma once

#include <bit>
#include <cstdint>
#include <limits>

namespace cpnsa::tool {

/// A 16-bit binary floating-point format: a sign, exponent_bits, and mantissa_bits. Conversions from double round once,
/// to nearest, ties to even; a value that is too large becomes infinite; NaN stays NaN.
template <int exponent_bits, int mantissa_bits>
struct SmallFloat {
  static_assert(1 + exponent_bits + mantissa_bits == 16);
  static constexpr int min_exponent = 2 - (1 << (exponent_bits - 1));  // exponent of the smallest normal number
  static constexpr std::uint64_t infinity = ((std::uint64_t{1} << exponent_bits) - 1) << mantissa_bits;

  std::uint16_t bits;

  SmallFloat() = default;

  explicit SmallFloat(double value) {
    const auto source = std::bit_cast<std::uint64_t>(value);
    const std::uint64_t sign = source >> 63 << 15;
    bits = static_cast<std::uint16_t>(sign | magnitude(source & ~(std::uint64_t{1} << 63)));
  }

  explicit operator double() const {
    const std::uint64_t sign = std::uint64_t{bits} >> 15 << 63;
    const std::uint64_t exponent = (bits & infinity) >> mantissa_bits;
    const std::uint64_t mantissa = bits & ((std::uint64_t{1} << mantissa_bits) - 1);
    if (exponent == 0) {
      // Subnormal: the mantissa counts steps of 2^(min_exponent - mantissa_bits), a power of two and so exact.
      const auto step = std::bit_cast<double>(std::uint64_t(1023 + min_exponent - mantissa_bits) << 52);
      const double value = static_cast<double>(mantissa) * step;
      return sign ? -value : value;
    }
    const std::uint64_t wide_exponent =
        exponent == infinity >> mantissa_bits ? 2047 : exponent + std::uint64_t(1022 + min_exponent);
    return std::bit_cast<double>(sign | wide_exponent << 52 | mantissa << (52 - mantissa_bits));
  }

 private:
  // Encodes `source`, the bits of a double without its sign.
  static std::uint64_t magnitude(std::uint64_t source) {
    constexpr std::uint64_t hidden = std::uint64_t{1} << 52;
    const int exponent = static_cast<int>(source >> 52) - 1023;
    const std::uint64_t mantissa = source & (hidden - 1);
    if (exponent == 1024) return mantissa == 0 ? infinity : infinity | std::uint64_t{1} << (mantissa_bits - 1);
    if (exponent < min_exponent - mantissa_bits - 1) return 0;  // below half of the smallest subnormal

    const int above_min = exponent - min_exponent;  // negative: the result is subnormal, or just becomes normal
    const int dropped = 52 - mantissa_bits + (above_min < 0 ? -above_min : 0);
    const std::uint64_t significand = hidden | mantissa;
    const std::uint64_t kept = significand >> dropped;
    const std::uint64_t rest = significand & ((std::uint64_t{1} << dropped) - 1);
    const std::uint64_t half = std::uint64_t{1} << (dropped - 1);
    const std::uint64_t rounded = kept + (rest > half || (rest == half && (kept & 1)) ? 1 : 0);
    // The hidden bit in `rounded` adds the exponent's last one, and a carry from rounding lands in the exponent too.
    const std::uint64_t result = (std::uint64_t(above_min < 0 ? 0 : above_min) << mantissa_bits) + rounded;
    return result < infinity ? result : infinity;
  }
};

using Half = SmallFloat<5, 10>;     ///< IEEE 754 binary16: f16, NumPy's f2
using BFloat16 = SmallFloat<8, 7>;  ///< the upper half of a float

}  // namespace cpnsa::tool
