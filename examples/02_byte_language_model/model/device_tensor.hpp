#pragma once

#include <initializer_list>

#include "cpnsa/device.hpp"
#include "cpnsa/tensor_view.hpp"

namespace language_model {

/// Where a rank computes attention.
struct Place {
  cpnsa::Device& device;
  cpnsa::Stream stream;
};

/// Memory of the device.
class DeviceMemory {
 public:
  DeviceMemory(const Place& place, std::size_t bytes) : place_(place), data_(place.device.allocate(bytes)) {}
  ~DeviceMemory() { place_.device.deallocate(data_); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  void* data() const { return data_; }

 private:
  Place place_;
  void* data_;
};

/// A float32 tensor in the device's memory.
class DeviceTensor {
 public:
  DeviceTensor(const Place& place, std::initializer_list<std::int64_t> shape)
      : place_(place),
        memory_(place, cpnsa::TensorView(nullptr, cpnsa::DType::f32, shape).bytes()),
        view_(memory_.data(), cpnsa::DType::f32, shape) {}

  const cpnsa::TensorView& view() const { return view_; }
  std::int64_t size() const { return view_.elements(); }

  void upload(const float* values) { place_.device.copy(view_.data, values, view_.bytes(), place_.stream); }
  void download(float* values) const {
    place_.device.copy(values, view_.data, view_.bytes(), place_.stream);
    place_.device.synchronize(place_.stream);
  }

 private:
  Place place_;
  DeviceMemory memory_;
  cpnsa::TensorView view_;
};

}  // namespace language_model
