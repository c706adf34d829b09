#pragma once

#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "cpnsa/device.hpp"

namespace cpnsa {

/// Owner of a device's memory, or of host memory that its copies run fastest from.
class DeviceMemory {
 public:
  enum class Place { device, host };

  DeviceMemory() = default;
  DeviceMemory(Device& device, std::size_t bytes, Place place = Place::device) : device_(&device), place_(place) {
    if (bytes == 0) return;
    data_ = place == Place::device ? device.allocate(bytes) : device.allocate_host(bytes);
    bytes_ = bytes;
  }
  DeviceMemory(DeviceMemory&& other) noexcept { swap(other); }
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    swap(other);
    return *this;
  }
  ~DeviceMemory() {
    if (!data_) return;
    place_ == Place::device ? device_->deallocate(data_) : device_->deallocate_host(data_);
  }

  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  void swap(DeviceMemory& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(place_, other.place_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }

  Device* device_ = nullptr;
  Place place_ = Place::device;
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

/// Owners of a stream and of an event.
class OwnedStream {
 public:
  explicit OwnedStream(Device& device) : device_(device), stream_(device.create_stream()) {}
  ~OwnedStream() { device_.destroy_stream(stream_); }
  OwnedStream(const OwnedStream&) = delete;
  OwnedStream& operator=(const OwnedStream&) = delete;
  Stream get() const { return stream_; }

 private:
  Device& device_;
  Stream stream_;
};

class OwnedEvent {
 public:
  explicit OwnedEvent(Device& device) : device_(device), event_(device.create_event()) {}
  ~OwnedEvent() { device_.destroy_event(event_); }
  OwnedEvent(const OwnedEvent&) = delete;
  OwnedEvent& operator=(const OwnedEvent&) = delete;
  Event get() const { return event_; }

 private:
  Device& device_;
  Event event_;
};

/// A list fixed when planning, with its copy in the device's memory.
template <class T>
class DeviceList {
 public:
  DeviceList() = default;
  DeviceList(Device& device, std::vector<T> items) : items_(std::move(items)) {
    if (device.host_accessible() || items_.empty()) return;
    memory_ = DeviceMemory(device, items_.size() * sizeof(T));
    // Not by the default stream, which would wait for whatever the caller's streams are doing.
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
  std::size_t device_bytes() const { return memory_.bytes(); }

 private:
  std::vector<T> items_;
  DeviceMemory memory_;
};

}  // namespace cpnsa
