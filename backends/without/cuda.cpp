#include "backends/backends.hpp"
#include "backends/without/refuse.hpp"

namespace cpnsa::backends {

int cuda_devices() {
  return 0;
}

std::unique_ptr<Device> make_cuda_device(int) {
  refuse("CUDA", "CPNSA_CUDA");
}

}  // namespace cpnsa::backends
