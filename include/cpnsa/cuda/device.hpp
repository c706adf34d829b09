#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "cpnsa/device.hpp"

namespace cpnsa::cuda {

/// Stands for the GPU that is current on the calling thread.
inline constexpr int current_device = -1;

/// The device of an NVIDIA GPU of compute capability 8.0 or later; `index` is the CUDA runtime's. It runs bf16 and f16
/// layers with float32 arithmetic. Stream handles are cudaStream_t; null is the legacy default stream. Tensors are
/// memory of the GPU, aligned to 16 bytes. The device makes itself current on threads that call it, and threads may
/// share it.
///
/// Errors: DeviceError if there is no such GPU, UnsupportedError if its compute capability is below 8.0.
std::unique_ptr<Device> make_device(int index = current_device);

/// Head dimensions that a tile of the kernels for compute capability 9.0 holds.
struct HopperTile {
  std::int64_t head_dim_qk;
  std::int64_t head_dim_v;
};

/// All of them, the same on every machine. A layer runs on the first tile that holds both its head dimensions, with any
/// number of query heads per KV head. Layers with greater head dimensions run on the kernels for every GPU, as do
/// layers whose softmax scale is not positive.
std::span<const HopperTile> hopper_tiles();

}  // namespace cpnsa::cuda
