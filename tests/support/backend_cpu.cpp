#include "cpnsa/cpu/device.hpp"
#include "tests/support/backends.hpp"

namespace cpnsa::test {
namespace {

const bool registered =
    add(devices(), DeviceBackend{"cpu", cpu::make_device, {DType::f64, DType::f32, DType::bf16, DType::f16}});

}  // namespace
}  // namespace cpnsa::test
