#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

namespace cub {

template <class Value>
struct DoubleBuffer {
  Value* d_buffers[2] = {};
  int selector = 0;

  DoubleBuffer() = default;
  DoubleBuffer(Value* first, Value* second) : d_buffers{first, second} {}
  Value* Current() { return d_buffers[selector]; }
};

/// As far as stages use it.
struct DeviceRadixSort {
  template <class Key, class Value>
  static cudaError_t SortPairs(void* temporary, std::size_t& bytes, DoubleBuffer<Key>& keys,
                               DoubleBuffer<Value>& values, std::int64_t count, int begin_bit, int end_bit,
                               cudaStream_t = nullptr) {
    if (!temporary) {
      bytes = 256;
      return cudaSuccess;
    }
    const auto key = [&](std::int64_t i) {
      const auto bits = static_cast<std::uint64_t>(keys.Current()[i]) >> begin_bit;
      return bits & ((std::uint64_t{1} << (end_bit - begin_bit)) - 1);
    };
    std::vector<std::int64_t> order(static_cast<std::size_t>(count));
    std::iota(order.begin(), order.end(), std::int64_t{0});
    std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) { return key(a) < key(b); });
    for (std::int64_t i = 0; i < count; ++i) {
      keys.d_buffers[1 - keys.selector][i] = keys.Current()[order[static_cast<std::size_t>(i)]];
      values.d_buffers[1 - values.selector][i] = values.Current()[order[static_cast<std::size_t>(i)]];
    }
    keys.selector ^= 1, values.selector ^= 1;
    return cudaSuccess;
  }
};

}  // namespace cub
