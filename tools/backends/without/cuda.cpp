#include "cpnsa/error.hpp"
#include "tools/backends/backends.hpp"

namespace cpnsa::tool::backends {

bool has_cuda() {
  return false;
}

int cuda_devices() {
  return 0;
}

std::unique_ptr<Device> make_cuda_device(int) {
  throw UnsupportedError("--device: found cuda, expected auto or cpu: this build has no CUDA (cmake --preset cuda)");
}

}  // namespace cpnsa::tool::backends
