#pragma once

#include <algorithm>
#include <initializer_list>
#include <vector>

#include "cpnsa/device.hpp"
#include "cpnsa/tensor_view.hpp"

namespace model {

/// Where a rank computes attention, and in which type.
struct Place {
  cpnsa::Device& device;
  cpnsa::Stream stream;
  cpnsa::DType dtype;  ///< f64 or f32
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

/// A tensor of type f64 or f32 in the device's memory, that the model's float64 values are copied to and from.
class DeviceTensor {
 public:
  DeviceTensor(const Place& place, std::initializer_list<std::int64_t> shape)
      : place_(place),
        memory_(place, cpnsa::TensorView(nullptr, place.dtype, shape).bytes()),
        view_(memory_.data(), place.dtype, shape) {}

  const cpnsa::TensorView& view() const { return view_; }
  std::int64_t size() const { return view_.elements(); }

  void upload(const double* values) {
    if (view_.dtype == cpnsa::DType::f64) return copy(view_.data, values);
    const std::vector<float> rounded(values, values + size());
    copy(view_.data, rounded.data());
    place_.device.synchronize(place_.stream);  // the copy reads `rounded`
  }

  void download(double* values) const {
    if (view_.dtype == cpnsa::DType::f64) {
      copy(values, view_.data);
      return place_.device.synchronize(place_.stream);
    }
    std::vector<float> narrow(static_cast<std::size_t>(size()));
    copy(narrow.data(), view_.data);
    place_.device.synchronize(place_.stream);
    std::copy(narrow.begin(), narrow.end(), values);
  }

 private:
  void copy(void* destination, const void* source) const {
    place_.device.copy(destination, source, view_.bytes(), place_.stream);
  }

  Place place_;
  DeviceMemory memory_;
  cpnsa::TensorView view_;
};

}  // namespace model
