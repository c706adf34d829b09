#include "tests/support/numbers.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <numbers>

namespace cpnsa::test {
namespace {

struct Format {
  int precision;     // bits of the significand, including the hidden one
  int min_exponent;  // frexp's exponent of the smallest normal number
  double greatest;
};

constexpr Format bf16_format{8, -125, 0x1.fep127};
constexpr Format f16_format{11, -13, 65504.0};

double round_to_format(const Format& format, double value) {
  if (!std::isfinite(value) || value == 0) return value;
  int exponent = 0;
  std::frexp(value, &exponent);
  const double quantum = std::ldexp(1.0, std::max(exponent, format.min_exponent) - format.precision);
  const double rounded = std::nearbyint(value / quantum) * quantum;
  return std::abs(rounded) > format.greatest ? std::copysign(HUGE_VAL, value) : rounded;
}

// `value` must be exact in f16.
std::uint16_t encode_f16(double value) {
  const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) return 0x7e00;
  if (std::isinf(value)) return sign | 0x7c00;
  if (value == 0) return sign;
  int exponent = 0;
  const double fraction = std::frexp(std::abs(value), &exponent);  // [0.5, 1)
  if (exponent < f16_format.min_exponent) return sign | static_cast<std::uint16_t>(std::ldexp(std::abs(value), 24));
  return sign | static_cast<std::uint16_t>((exponent + 14) << 10) |
         static_cast<std::uint16_t>(std::ldexp(fraction, 11) - 1024);
}

double decode_f16(std::uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const double mantissa = bits & 1023;
  double magnitude = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  if (exponent == 31) magnitude = mantissa == 0 ? HUGE_VAL : NAN;
  return bits & 0x8000 ? -magnitude : magnitude;
}

std::uint16_t encode_bf16(double value) {
  return static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(static_cast<float>(value)) >> 16);
}

double decode_bf16(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

template <class Element, class Encode>
std::vector<std::byte> encode_as(const Values& values, Encode encode_one) {
  std::vector<std::byte> bytes(values.size() * sizeof(Element));
  for (std::size_t i = 0; i < values.size(); ++i) {
    const Element element = encode_one(values[i]);
    std::memcpy(bytes.data() + i * sizeof(Element), &element, sizeof element);
  }
  return bytes;
}

template <class Element, class Decode>
Values decode_as(const std::byte* bytes, std::int64_t count, Decode decode_one) {
  Values values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i) {
    Element element;
    std::memcpy(&element, bytes + i * sizeof(Element), sizeof element);
    values[i] = decode_one(element);
  }
  return values;
}

}  // namespace

double round_to(DType dtype, double value) {
  switch (dtype) {
    case DType::f64: return value;
    case DType::f32: return static_cast<float>(value);
    case DType::bf16: return round_to_format(bf16_format, value);
    case DType::f16: return round_to_format(f16_format, value);
  }
  return value;
}

long double round_to(DType dtype, long double value) {
  return dtype == DType::f64 ? value : static_cast<long double>(round_to(dtype, static_cast<double>(value)));
}

float round_to(DType dtype, float value) {
  return static_cast<float>(round_to(dtype, static_cast<double>(value)));
}

Values round_to(DType dtype, Values values) {
  for (double& value : values) value = round_to(dtype, value);
  return values;
}

std::vector<std::byte> encode(DType dtype, const Values& values) {
  switch (dtype) {
    case DType::f64: return encode_as<double>(values, [](double value) { return value; });
    case DType::f32: return encode_as<float>(values, [](double value) { return static_cast<float>(value); });
    case DType::bf16:
      return encode_as<std::uint16_t>(values, [](double value) { return encode_bf16(round_to(DType::bf16, value)); });
    case DType::f16:
      return encode_as<std::uint16_t>(values, [](double value) { return encode_f16(round_to(DType::f16, value)); });
  }
  return {};
}

Values decode(DType dtype, const std::byte* bytes, std::int64_t count) {
  switch (dtype) {
    case DType::f64: return decode_as<double>(bytes, count, [](double value) { return value; });
    case DType::f32: return decode_as<float>(bytes, count, [](float value) { return static_cast<double>(value); });
    case DType::bf16: return decode_as<std::uint16_t>(bytes, count, decode_bf16);
    case DType::f16: return decode_as<std::uint16_t>(bytes, count, decode_f16);
  }
  return {};
}

std::int64_t Random::integer(std::int64_t min, std::int64_t max) {
  return min + static_cast<std::int64_t>(engine_() % static_cast<std::uint64_t>(max - min + 1));
}

double Random::uniform() {
  return static_cast<double>(engine_() >> 11) * 0x1p-53;
}

// By the method of Box and Muller.
double Random::normal() {
  const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));
  return radius * std::cos(2.0 * std::numbers::pi * uniform());
}

Values Random::normals(std::int64_t count, double deviation) {
  Values values(static_cast<std::size_t>(count));
  for (double& value : values) value = deviation * normal();
  return values;
}

}  // namespace cpnsa::test
