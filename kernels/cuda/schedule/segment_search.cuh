#pragma once

#include <cstdint>

#include "cpnsa/ops.hpp"

namespace cpnsa::cuda {

/// The segment that a local row is of.
__device__ __forceinline__ const Segment& segment_of_row(const Segment* segments, int count, std::int64_t row) {
  int first = 0;
  while (count > 1) {
    const int half = count / 2;
    if (segments[first + half].row <= row) {
      first += half;
      count -= half;
    } else {
      count = half;
    }
  }
  return segments[first];
}

}  // namespace cpnsa::cuda
