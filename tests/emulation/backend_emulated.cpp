#include <cstdlib>
#include <string_view>

#include "cpnsa/cuda/device.hpp"
#include "tests/support/backends.hpp"

namespace cpnsa::test {
namespace {

// Of the portable kernels' types one is enough here: they differ in a template's argument.
std::vector<DType> dtypes() {
  const char* const capability = std::getenv("CPNSA_EMULATED_CAPABILITY");
  if (capability && std::string_view(capability) == "80") return {DType::bf16};
  return {DType::bf16, DType::f16};
}

// The CUDA device on fibers. What walks long tiles takes documents that are too long for the oracle's time here.
const bool registered =
    add(devices(), DeviceBackend{"emulated_cuda", [] { return cuda::make_device(); }, dtypes(), 8, false, true});

}  // namespace
}  // namespace cpnsa::test
