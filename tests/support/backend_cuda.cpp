#include "cpnsa/cuda/device.hpp"
#include "tests/support/backends.hpp"

namespace cpnsa::test {
namespace {

const bool registered =
    add(devices(), DeviceBackend{"cuda", [] { return cuda::make_device(); }, {DType::bf16, DType::f16}});

}  // namespace
}  // namespace cpnsa::test
