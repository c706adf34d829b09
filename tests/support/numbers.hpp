#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "cpnsa/dtype.hpp"

namespace cpnsa::test {

/// The elements of a tensor in a test, independent of the type that the library gets them in.
using Values = std::vector<double>;

/// The nearest value of the type, ties to even.
double round_to(DType dtype, double value);
long double round_to(DType dtype, long double value);
float round_to(DType dtype, float value);
Values round_to(DType dtype, Values values);

/// Converts values to elements of the type in memory, and back.
std::vector<std::byte> encode(DType dtype, const Values& values);
Values decode(DType dtype, const std::byte* bytes, std::int64_t count);

/// Random numbers that are the same on every machine and with every standard library.
class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}
  std::int64_t integer(std::int64_t min, std::int64_t max);  ///< in [min, max]
  bool chance(double probability) { return uniform() < probability; }
  double uniform();  ///< [0, 1)
  double normal();
  Values normals(std::int64_t count, double deviation = 1.0);
  template <class T>
  const T& pick(const std::vector<T>& choices) {
    return choices[static_cast<std::size_t>(integer(0, static_cast<std::int64_t>(choices.size()) - 1))];
  }
  template <class T, std::size_t count>
  const T& pick(const std::array<T, count>& choices) {
    return choices[static_cast<std::size_t>(integer(0, static_cast<std::int64_t>(count) - 1))];
  }

 private:
  std::mt19937_64 engine_;
};

}  // namespace cpnsa::test
