#pragma once

#include <cstddef>
#include <memory>
#include <utility>

#include "cpnsa/device_memory.hpp"

namespace cpnsa::python {

/// Memory of a device, which it keeps alive, for callers with no framework that allocates.
class Buffer {
 public:
  Buffer(std::shared_ptr<Device> device, std::size_t bytes) : device_(std::move(device)), memory_(*device_, bytes) {}

  const Device& device() const { return *device_; }
  std::size_t bytes() const { return memory_.size(); }
  void* data() const { return memory_.data(); }

 private:
  std::shared_ptr<Device> device_;
  DeviceBuffer memory_;
};

}  // namespace cpnsa::python
