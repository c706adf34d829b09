#include "cpnsa/cuda/device.hpp"
#include "tests/support/backends.hpp"

namespace cpnsa::test {
namespace {

// The CUDA device on fibers. What walks long tiles takes documents that are too long for the oracle's time here.
const bool registered =
    add(devices(),
        DeviceBackend{"emulated_cuda", [] { return cuda::make_device(); }, {DType::bf16, DType::f16}, 8, false, true});

}  // namespace
}  // namespace cpnsa::test
