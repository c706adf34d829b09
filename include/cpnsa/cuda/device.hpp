#pragma once

#include <memory>

#include "cpnsa/device.hpp"

namespace cpnsa::cuda {

/// The card that is current on the calling thread.
inline constexpr int current_device = -1;

/// An NVIDIA GPU of compute capability 8.0 or later, as the CUDA runtime numbers them: bf16 and f16 layers, float32
/// arithmetic. Stream handles are cudaStream_t, null the legacy default stream; tensors are the card's memory, aligned
/// to 16 bytes. The device makes itself current on threads that call it. It may be shared by threads.
///
/// Throws DeviceError where there is no such card, UnsupportedError where it is older than 8.0.
std::unique_ptr<Device> make_device(int index = current_device);

}  // namespace cpnsa::cuda
