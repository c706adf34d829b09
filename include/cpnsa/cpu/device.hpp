#pragma once

#include <memory>

#include "cpnsa/device.hpp"

namespace cpnsa::cpu {

/// The CPU device: plain loops on the calling thread, f64, f32, and bf16 or f16 storage with f32 arithmetic. It is the
/// executable specification that every other device is checked against. Work is done when a call returns.
std::unique_ptr<Device> make_device();

}  // namespace cpnsa::cpu
