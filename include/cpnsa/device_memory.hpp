#pragma once

#include <cstddef>
#include <memory>
#include <utility>

#include "cpnsa/device.hpp"

namespace cpnsa {

/// Owner of one resource of a device: the base of the owners below. Movable, not copyable; a default-constructed or
/// moved-from owner owns nothing.
///
/// An owner may outlive its device. The device takes its resources with it, so that nothing is left to give back then.
template <class Handle, void (Device::*give_back)(Handle) noexcept>
class DeviceResource {
 public:
  DeviceResource() = default;
  DeviceResource(DeviceResource&& other) noexcept { swap(other); }
  DeviceResource& operator=(DeviceResource&& other) noexcept {
    DeviceResource previous;
    previous.swap(*this);
    swap(other);
    return *this;
  }
  ~DeviceResource() {
    if (owns_ && !lifetime_.expired()) (device_->*give_back)(handle_);
  }

  /// True if it owns a resource, even one of a device that no longer exists.
  explicit operator bool() const { return owns_; }
  /// True if it owns a resource of this device.
  bool belongs_to(const Device& device) const {
    const std::weak_ptr<const void> other = device.lifetime();
    return owns_ && !lifetime_.owner_before(other) && !other.owner_before(lifetime_);
  }
  /// Ends the ownership: the caller gives the resource back to the device.
  Handle release() noexcept {
    owns_ = false;
    return std::exchange(handle_, Handle{});
  }

 protected:
  DeviceResource(Device& device, Handle handle)
      : device_(&device), lifetime_(device.lifetime()), handle_(handle), owns_(true) {}
  Handle handle() const { return handle_; }

 private:
  void swap(DeviceResource& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(lifetime_, other.lifetime_);
    std::swap(handle_, other.handle_);
    std::swap(owns_, other.owns_);
  }

  Device* device_ = nullptr;
  std::weak_ptr<const void> lifetime_;
  Handle handle_{};
  bool owns_ = false;
};

/// Owner of device memory, uninitialised when it is made, 256-byte aligned.
///
/// Its end frees the memory at once, not in the order of a stream: work that uses the memory must be over by then.
class DeviceBuffer : public DeviceResource<void*, &Device::deallocate> {
 public:
  DeviceBuffer() = default;
  /// Allocates nothing for 0 bytes: data() is null then. Errors: DeviceError when the device has no memory left.
  DeviceBuffer(Device& device, std::size_t bytes) {
    if (bytes > 0) *this = DeviceBuffer(device, device.allocate(bytes), bytes);
  }

  void* data() const { return handle(); }
  std::size_t size() const { return *this ? bytes_ : 0; }  ///< bytes

 private:
  DeviceBuffer(Device& device, void* memory, std::size_t bytes) : DeviceResource(device, memory), bytes_(bytes) {}

  std::size_t bytes_ = 0;
};

/// Owner of the host memory that a device copies fastest from and to: pinned memory for CUDA.
class PinnedBuffer : public DeviceResource<void*, &Device::deallocate_host> {
 public:
  PinnedBuffer() = default;
  /// Allocates nothing for 0 bytes: data() is null then. Errors: DeviceError when there is no memory left.
  PinnedBuffer(Device& device, std::size_t bytes) {
    if (bytes > 0) *this = PinnedBuffer(device, device.allocate_host(bytes), bytes);
  }

  void* data() const { return handle(); }
  std::size_t size() const { return *this ? bytes_ : 0; }  ///< bytes

 private:
  PinnedBuffer(Device& device, void* memory, std::size_t bytes) : DeviceResource(device, memory), bytes_(bytes) {}

  std::size_t bytes_ = 0;
};

/// Owner of a stream. Its end does not wait for what is enqueued on the stream.
class OwnedStream : public DeviceResource<Stream, &Device::destroy_stream> {
 public:
  OwnedStream() = default;
  /// Errors: DeviceError.
  explicit OwnedStream(Device& device) : DeviceResource(device, device.create_stream()) {}

  Stream get() const { return handle(); }
};

/// Owner of an event.
class OwnedEvent : public DeviceResource<Event, &Device::destroy_event> {
 public:
  OwnedEvent() = default;
  /// Errors: DeviceError.
  explicit OwnedEvent(Device& device) : DeviceResource(device, device.create_event()) {}

  Event get() const { return handle(); }
};

}  // namespace cpnsa
