#include "tools/device_tensor.hpp"

#include <algorithm>

namespace cpnsa::tool {
namespace {

constexpr std::size_t staging_bytes = std::size_t{8} << 20;

TensorView shaped(DType dtype, const std::vector<std::int64_t>& shape) {
  TensorView view;
  view.dtype = dtype;
  view.rank = static_cast<int>(shape.size());
  std::copy(shape.begin(), shape.end(), view.shape.begin());
  view.given = true;
  return view;
}

}  // namespace

DeviceTensor::DeviceTensor(Device& device, DType dtype, const std::vector<std::int64_t>& shape)
    : view_(shaped(dtype, shape)), memory_(device, view_.bytes()) {
  view_.data = memory_.data();
}

std::int64_t DeviceTensor::elements_per_row() const {
  std::int64_t elements = 1;
  for (int i = 1; i < view_.rank; ++i) elements *= view_.shape[static_cast<std::size_t>(i)];
  return elements;
}

Staging::Staging(Device& device, Stream stream) : device_(device), stream_(stream), memory_(device, staging_bytes) {}

void Staging::reserve(std::size_t bytes) {
  if (bytes > memory_.size()) memory_ = PinnedBuffer(device_, bytes);
}

void Staging::copy(void* destination, const void* source, std::size_t bytes) {
  device_.copy(destination, source, bytes, stream_);
  device_.synchronize(stream_);
}

}  // namespace cpnsa::tool
