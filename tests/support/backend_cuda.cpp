#include "cpnsa/cuda/device.hpp"
#include "tests/support/backends.hpp"

namespace cpnsa::test {
namespace {

// The GPU that is current on the thread: the rank's own if the transport assigns one to each rank, else the first.
const bool registered = add(
    devices(),
    DeviceBackend{"cuda", [] { return cuda::make_device(); }, {DType::bf16, DType::f16}, 8, true, true, false, true});

}  // namespace
}  // namespace cpnsa::test
