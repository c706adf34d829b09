#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpnsa/device_memory.hpp"
#include "cpnsa/tensor_view.hpp"

namespace cpnsa::tool {

/// A tensor in device memory with its owner.
class DeviceTensor {
 public:
  DeviceTensor(Device& device, DType dtype, const std::vector<std::int64_t>& shape);

  const TensorView& view() const { return view_; }
  std::int64_t elements() const { return view_.elements(); }
  std::int64_t elements_per_row() const;  ///< the extents after the first, multiplied
  std::size_t row_bytes() const { return static_cast<std::size_t>(elements_per_row()) * size_of(view_.dtype); }

 private:
  TensorView view_;
  DeviceBuffer memory_;
};

/// A piece of host memory that data passes through on its way to the device and back, a chunk at a time.
class Staging {
 public:
  Staging(Device& device, Stream stream);

  /// Fills `items` items of `item_bytes` at `destination` in device memory: fill(first, count, host) writes items
  /// [first, first + count) to the host memory. Returns when they are there.
  template <class Fill>
  void upload(void* destination, std::int64_t items, std::size_t item_bytes, const Fill& fill) {
    each_chunk(items, item_bytes, [&](std::int64_t first, std::int64_t count, void* host) {
      fill(first, count, host);
      copy(static_cast<std::byte*>(destination) + offset(first, item_bytes), host, offset(count, item_bytes));
    });
  }

  /// The way back: use(first, count, host) reads the items.
  template <class Use>
  void download(const void* source, std::int64_t items, std::size_t item_bytes, const Use& use) {
    each_chunk(items, item_bytes, [&](std::int64_t first, std::int64_t count, void* host) {
      copy(host, static_cast<const std::byte*>(source) + offset(first, item_bytes), offset(count, item_bytes));
      use(first, count, static_cast<const void*>(host));
    });
  }

 private:
  static std::size_t offset(std::int64_t items, std::size_t item_bytes) {
    return static_cast<std::size_t>(items) * item_bytes;
  }

  template <class Body>
  void each_chunk(std::int64_t items, std::size_t item_bytes, const Body& body) {
    if (item_bytes == 0) return;
    reserve(item_bytes);
    const auto most = static_cast<std::int64_t>(memory_.size() / item_bytes);
    for (std::int64_t first = 0; first < items; first += most)
      body(first, std::min(most, items - first), memory_.data());
  }

  void reserve(std::size_t bytes);
  void copy(void* destination, const void* source, std::size_t bytes);

  Device& device_;
  Stream stream_;
  PinnedBuffer memory_;
};

}  // namespace cpnsa::tool
