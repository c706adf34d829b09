#include "cpnsa/cuda/device.hpp"
#include "tests/support/backends.hpp"

namespace cpnsa::test {
namespace {

// The card that is current on the thread: that of the rank where a transport gives each its own, else the first.
const bool registered =
    add(devices(), DeviceBackend{"cuda", [] { return cuda::make_device(); }, {DType::bf16, DType::f16}, 8, true, true});

}  // namespace
}  // namespace cpnsa::test
