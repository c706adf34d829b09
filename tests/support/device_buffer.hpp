#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpnsa/device_memory.hpp"
#include "tests/support/numbers.hpp"

namespace cpnsa::test {

/// Device memory that starts poisoned: its content is NaN in every floating-point type.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(Device& device, std::size_t bytes);
  /// Holds the values in the given type. No values are still an allocation, so that data() is memory of the device.
  DeviceBuffer(Device& device, DType dtype, const Values& values);
  template <class T>
  DeviceBuffer(Device& device, const std::vector<T>& items) : DeviceBuffer(device, items.size() * sizeof(T)) {
    write(reinterpret_cast<const std::byte*>(items.data()), bytes_);
  }

  void* data() const { return memory_.data(); }
  std::size_t bytes() const { return bytes_; }

  void poison() { fill(0xff); }
  void fill(unsigned char byte);
  void write(const std::byte* source, std::size_t bytes);
  std::vector<std::byte> read() const;
  Values values(DType dtype) const;
  std::vector<std::int32_t> indices() const;

 private:
  Device* device_ = nullptr;
  cpnsa::DeviceBuffer memory_;
  std::size_t bytes_ = 0;
};

/// A buffer of `count` block indices, all of them invalid.
DeviceBuffer poisoned_indices(Device& device, std::int64_t count);

/// A list that exists in host and in device memory.
template <class T>
class DeviceListBuffer {
 public:
  DeviceListBuffer(Device& device, std::vector<T> items) : items_(std::move(items)), buffer_(device, items_) {}
  ListView<T> view() const {
    return {items_.data(), static_cast<const T*>(buffer_.data()), static_cast<std::int64_t>(items_.size())};
  }

 private:
  std::vector<T> items_;
  DeviceBuffer buffer_;
};

}  // namespace cpnsa::test
