#include <cuda_runtime_api.h>

#include "backends/backends.hpp"
#include "cpnsa/cuda/device.hpp"

namespace cpnsa::backends {

int cuda_devices() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;  // it fails where there is no GPU or no driver
}

std::unique_ptr<Device> make_cuda_device(int index) {
  return cuda::make_device(index);
}

}  // namespace cpnsa::backends
