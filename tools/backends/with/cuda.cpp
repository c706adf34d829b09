#include <cuda_runtime_api.h>

#include "cpnsa/cuda/device.hpp"
#include "cpnsa/error.hpp"
#include "tools/backends/backends.hpp"

namespace cpnsa::tool::backends {

bool has_cuda() {
  return true;
}

int cuda_devices() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;  // it fails where there is no GPU or no driver
}

std::unique_ptr<Device> make_cuda_device(int index) {
  if (cuda_devices() == 0)
    throw UnsupportedError("--device: found cuda, expected auto or cpu: this machine has no GPU that CUDA can use");
  return cuda::make_device(index);
}

}  // namespace cpnsa::tool::backends
