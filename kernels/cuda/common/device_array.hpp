#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <span>
#include <utility>

#include "kernels/cuda/common/check.hpp"

namespace cpnsa::cuda {

/// Owner of an array in the memory of the device that was current when it was made. Filled while planning; the
/// constructor returns when the copy has been made.
template <class T>
class DeviceArray {
 public:
  DeviceArray() = default;
  explicit DeviceArray(std::span<const T> items) : count_(items.size()) {
    if (items.empty()) return;
    void* memory = nullptr;
    check(cudaMalloc(&memory, items.size_bytes()), "cudaMalloc");
    data_ = static_cast<T*>(memory);
    // Not through the legacy default stream: other threads may be capturing, or keep it busy.
    const cudaError_t copied =
        cudaMemcpyAsync(data_, items.data(), items.size_bytes(), cudaMemcpyHostToDevice, cudaStreamPerThread);
    const cudaError_t done = copied == cudaSuccess ? cudaStreamSynchronize(cudaStreamPerThread) : copied;
    if (done != cudaSuccess) release();
    check(done, "cudaMemcpyAsync");
  }
  DeviceArray(DeviceArray&& other) noexcept { swap(other); }
  DeviceArray& operator=(DeviceArray&& other) noexcept {
    swap(other);
    return *this;
  }
  ~DeviceArray() { release(); }

  const T* data() const { return data_; }
  std::size_t size() const { return count_; }

 private:
  void swap(DeviceArray& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
  }
  void release() noexcept {
    if (data_) static_cast<void>(cudaFree(data_));  // nothing to be done about a device that fails here
    data_ = nullptr;
  }

  T* data_ = nullptr;
  std::size_t count_ = 0;
};

}  // namespace cpnsa::cuda
