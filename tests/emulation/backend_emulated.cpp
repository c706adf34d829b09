#include <cstdlib>
#include <string_view>

#include "cpnsa/cuda/device.hpp"
#include "tests/support/backends.hpp"

namespace cpnsa::test {
namespace {

bool is_hopper() {
  const char* const capability = std::getenv("CPNSA_EMULATED_CAPABILITY");
  return !capability || std::string_view(capability) != "80";
}

// One type is enough for the kernels for every GPU: types differ in a template argument.
std::vector<DType> dtypes() {
  if (is_hopper()) return {DType::bf16, DType::f16};
  return {DType::bf16};
}

// The CUDA device on fibers. Tests of long tiles are left out on sm80: their documents would take the oracle too long.
const bool registered = add(devices(), DeviceBackend{"emulated_cuda", [] { return cuda::make_device(); }, dtypes(), 8,
                                                     false, true, is_hopper(), is_hopper(), true});

}  // namespace
}  // namespace cpnsa::test
