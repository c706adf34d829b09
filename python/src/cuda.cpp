#include "src/cuda.hpp"

#include "cpnsa/cuda/device.hpp"

namespace cpnsa::python {

const bool has_cuda = true;

std::shared_ptr<Device> make_cuda_device(int index) {
  return cuda::make_device(index);
}

}  // namespace cpnsa::python
