#include "tools/number_formats.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace cpnsa::test {
namespace {

using tool::BFloat16;
using tool::Half;

template <class Format>
Format of_bits(unsigned bits) {
  Format value;
  value.bits = static_cast<std::uint16_t>(bits);
  return value;
}

// The value by its definition.
template <int exponent_bits, int mantissa_bits>
double defined(unsigned bits) {
  const int exponent = static_cast<int>(bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const int mantissa = static_cast<int>(bits) & ((1 << mantissa_bits) - 1);
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == (1 << exponent_bits) - 1)
    return mantissa ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
}

template <int exponent_bits, int mantissa_bits>
void check_all() {
  using Format = tool::SmallFloat<exponent_bits, mantissa_bits>;
  constexpr unsigned infinity = ((1u << exponent_bits) - 1) << mantissa_bits;
  for (unsigned bits = 0; bits <= 0xffff; ++bits) {
    const double expected = defined<exponent_bits, mantissa_bits>(bits);
    const double found = static_cast<double>(of_bits<Format>(bits));
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(found)) << bits;
      ASSERT_TRUE(std::isnan(static_cast<double>(Format(found)))) << bits;
      continue;
    }
    ASSERT_EQ(found, expected) << bits;
    ASSERT_EQ(std::signbit(found), std::signbit(expected)) << bits;
    ASSERT_EQ(Format(expected).bits, bits);
  }
  // Halfway between neighbours the even one is taken, and either side of it the nearer.
  for (unsigned bits = 0; bits + 1 < infinity; ++bits) {
    const double low = defined<exponent_bits, mantissa_bits>(bits),
                 high = defined<exponent_bits, mantissa_bits>(bits + 1);
    const double middle = (low + high) / 2;
    ASSERT_EQ(Format(middle).bits, bits % 2 == 0 ? bits : bits + 1);
    ASSERT_EQ(Format(std::nextafter(middle, low)).bits, bits);
    ASSERT_EQ(Format(std::nextafter(middle, high)).bits, bits + 1);
    ASSERT_EQ(Format(-middle).bits, 0x8000 | (bits % 2 == 0 ? bits : bits + 1));
  }
  const double largest = defined<exponent_bits, mantissa_bits>(infinity - 1);
  const double step = largest - defined<exponent_bits, mantissa_bits>(infinity - 2);
  EXPECT_EQ(Format(std::nextafter(largest + step / 2, 0)).bits, infinity - 1);
  EXPECT_EQ(Format(largest + step / 2).bits, infinity);
  EXPECT_EQ(Format(1e300).bits, infinity);
  EXPECT_EQ(Format(-1e-300).bits, 0x8000);
  EXPECT_EQ(Format(5e-324).bits, 0);
}

TEST(NumberFormats, HalfIsIeee) {
  check_all<5, 10>();
}
TEST(NumberFormats, BFloat16IsTheUpperHalfOfAFloat) {
  check_all<8, 7>();
}

}  // namespace
}  // namespace cpnsa::test
