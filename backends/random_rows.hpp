#pragma once

#include <cstdint>

namespace cpnsa::backends {

/// One tensor's random numbers, nearly normal: a function of the row and the column alone, so that they can be made in
/// any order, by any rank, on the host or on a GPU, and are the same.
struct RandomRows {
  std::uint64_t key = 0;
  std::int64_t width = 1;  ///< elements of a row
  float scale = 1;         ///< standard deviation
  std::int64_t run = 1;    ///< rows r / run alike share a direction
  float own_share = 0;     ///< with runs: standard deviation of what a row adds of its own

  constexpr float at(std::int64_t row, std::int64_t column) const {
    const auto number = [&](std::uint64_t stream, std::int64_t of_row) {
      return normal(mix(stream + static_cast<std::uint64_t>(of_row * width + column) * step));
    };
    if (run == 1) return scale * number(key, row);
    return scale * number(mix(key), row / run) + own_share * number(key, row);
  }

  /// splitmix64: neighbouring numbers in, unrelated numbers out.
  static constexpr std::uint64_t mix(std::uint64_t x) {
    x += step;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
  }

 private:
  static constexpr std::uint64_t step = 0x9e3779b97f4a7c15ull;

  // The sum of eight uniform bytes, which is close to normal up to 4.9 deviations.
  static constexpr float normal(std::uint64_t bits) {
    constexpr float mean = 8 * 127.5f, deviation = 209.0215f;  // sqrt(8 (256^2 - 1) / 12)
    const std::uint64_t pairs = (bits & 0x00ff00ff00ff00ffull) + (bits >> 8 & 0x00ff00ff00ff00ffull);
    const auto sum = static_cast<std::uint32_t>(pairs * 0x0001000100010001ull >> 48);
    return (static_cast<float>(sum) - mean) / deviation;
  }
};

}  // namespace cpnsa::backends
