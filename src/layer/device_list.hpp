#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#include "cpnsa/device_memory.hpp"

namespace cpnsa {

/// A list fixed when planning, with its copy in the device's memory.
template <class T>
class DeviceList {
 public:
  DeviceList() = default;
  DeviceList(Device& device, std::vector<T> items) : items_(std::move(items)) {
    if (device.host_accessible() || items_.empty()) return;
    memory_ = DeviceBuffer(device, items_.size() * sizeof(T));
    // A stream of its own: the default stream would wait for the work of the caller's streams.
    const OwnedStream stream(device);
    device.copy(memory_.data(), items_.data(), items_.size() * sizeof(T), stream.get());
    device.synchronize(stream.get());
  }

  ListView<T> view() const { return view(0, static_cast<std::int64_t>(items_.size())); }
  /// Items [first, first + count).
  ListView<T> view(std::int64_t first, std::int64_t count) const {
    const T* device = memory_.data() ? static_cast<const T*>(memory_.data()) : items_.data();
    return {items_.data() + first, device + first, count};
  }
  const std::vector<T>& items() const { return items_; }
  std::size_t device_bytes() const { return memory_.size(); }

 private:
  std::vector<T> items_;
  DeviceBuffer memory_;
};

}  // namespace cpnsa
