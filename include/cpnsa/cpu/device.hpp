#pragma once

#include <memory>

#include "cpnsa/device.hpp"

namespace cpnsa::cpu {

/// The CPU device: plain loops on the calling thread, for f64 and f32, and for bf16 and f16 with f32 arithmetic. It is
/// the executable specification with which other devices are compared. The work is done when a call returns.
std::unique_ptr<Device> make_device();

}  // namespace cpnsa::cpu
