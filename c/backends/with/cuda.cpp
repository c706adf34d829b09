#include "c/backends/backends.hpp"
#include "cpnsa/cuda/device.hpp"

namespace cpnsa::c::backends {

bool has_cuda() {
  return true;
}

std::unique_ptr<Device> make_cuda_device(int index) {
  return cuda::make_device(index);
}

}  // namespace cpnsa::c::backends
