#include "cpnsa/error.hpp"
#include "src/cuda.hpp"

namespace cpnsa::python {

const bool has_cuda = false;

std::shared_ptr<Device> make_cuda_device(int) {
  throw UnsupportedError(
      "cuda device: found a cpnsa built without CUDA, expected one installed with "
      "--config-settings=cmake.define.CPNSA_CUDA=ON; supported here is the CPU");
}

}  // namespace cpnsa::python
