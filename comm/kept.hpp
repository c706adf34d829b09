#pragma once

#include <cstddef>
#include <memory>

#include "cpnsa/device.hpp"

namespace cpnsa::comm {

/// The device of which a communicator keeps something between calls. Communicators often outlive devices: what is kept
/// is given back to a device that lives, and gone with one that does not.
class KeptDevice {
 public:
  bool is(const Device& device) const {
    const std::weak_ptr<const void> other = device.lifetime();
    return device_ && !lifetime_.owner_before(other) && !other.owner_before(lifetime_);
  }
  void set(Device& device) {
    device_ = &device;
    lifetime_ = device.lifetime();
  }
  Device* alive() const { return lifetime_.expired() ? nullptr : device_; }

 private:
  Device* device_ = nullptr;
  std::weak_ptr<const void> lifetime_;
};

/// An event, made when first asked for.
class KeptEvent {
 public:
  KeptEvent() = default;
  KeptEvent(const KeptEvent&) = delete;
  KeptEvent& operator=(const KeptEvent&) = delete;
  ~KeptEvent() { release(); }

  Event get(Device& device) {
    if (device_.is(device)) return event_;
    release();
    device_ = {};
    event_ = device.create_event();
    device_.set(device);
    return event_;
  }

 private:
  void release() {
    if (Device* device = device_.alive()) device->destroy_event(event_);
  }

  KeptDevice device_;
  Event event_;
};

/// Host memory that the device's copies run fastest from; grows to the largest size asked for.
class KeptHostBuffer {
 public:
  KeptHostBuffer() = default;
  KeptHostBuffer(const KeptHostBuffer&) = delete;
  KeptHostBuffer& operator=(const KeptHostBuffer&) = delete;
  ~KeptHostBuffer() { release(); }

  /// The content is lost when it grows.
  std::byte* get(Device& device, std::size_t bytes) {
    if (device_.is(device) && bytes <= bytes_) return data_;
    release();
    device_ = {};
    bytes_ = 0;
    data_ = static_cast<std::byte*>(device.allocate_host(bytes));
    bytes_ = bytes;
    device_.set(device);
    return data_;
  }

 private:
  void release() {
    if (Device* device = device_.alive()) device->deallocate_host(data_);
  }

  KeptDevice device_;
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace cpnsa::comm
