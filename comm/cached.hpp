#pragma once

#include <cstddef>

#include "cpnsa/device_memory.hpp"

namespace cpnsa::comm {

/// An event that a communicator caches between operations: created by the first get() with a device.
/// Communicators often outlive devices, and the owners in device_memory.hpp may.
class CachedEvent {
 public:
  Event get(Device& device) {
    if (!event_.belongs_to(device)) event_ = OwnedEvent(device);
    return event_.get();
  }

 private:
  OwnedEvent event_;
};

/// Pinned host memory that a communicator caches between operations; grows to the largest size asked for.
class CachedHostBuffer {
 public:
  /// The content is lost when it grows.
  std::byte* get(Device& device, std::size_t bytes) {
    if (!memory_.belongs_to(device) || bytes > memory_.size()) {
      memory_ = {};  // before the new memory is allocated: both together may be more than there is
      memory_ = PinnedBuffer(device, bytes);
    }
    return static_cast<std::byte*>(memory_.data());
  }

 private:
  PinnedBuffer memory_;
};

}  // namespace cpnsa::comm
