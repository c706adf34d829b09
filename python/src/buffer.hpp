#pragma once

#include <cstddef>
#include <memory>
#include <utility>

#include "cpnsa/device.hpp"

namespace cpnsa::python {

/// Memory of a device, for callers with no framework that allocates.
class Buffer {
 public:
  Buffer(std::shared_ptr<Device> device, std::size_t bytes)
      : device_(std::move(device)), bytes_(bytes), data_(device_->allocate(bytes)) {}
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { device_->deallocate(data_); }

  const Device& device() const { return *device_; }
  std::size_t bytes() const { return bytes_; }
  void* data() const { return data_; }

 private:
  std::shared_ptr<Device> device_;
  std::size_t bytes_;
  void* data_;
};

}  // namespace cpnsa::python
