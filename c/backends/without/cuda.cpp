#include "c/backends/backends.hpp"
#include "cpnsa/error.hpp"

namespace cpnsa::c::backends {

bool has_cuda() {
  return false;
}

std::unique_ptr<Device> make_cuda_device(int) {
  throw UnsupportedError("found a library built without CUDA, expected one built with CPNSA_CUDA=ON");
}

}  // namespace cpnsa::c::backends
