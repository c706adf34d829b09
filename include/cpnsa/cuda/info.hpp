#pragma once

#include <cstdint>
#include <vector>

#include "cpnsa/config.hpp"
#include "cpnsa/decode_forecast.hpp"
#include "cpnsa/dtype.hpp"
#include "cpnsa/info.hpp"

namespace cpnsa::cuda {

/// The CUDA runtime, which is linked in, and the driver: compiled and found.
std::vector<LibraryVersion> library_versions();

/// The GPUs that this process sees; empty without a driver.
std::vector<GpuInfo> gpus();

/// The kernels that run each op of a layer that has more than one kernel, on a GPU of this compute capability (80 or
/// later); needs no GPU. Documents whose blocks do not fit in a thread block's shared memory change the choice for the
/// selected branch, as the reasons say. Throws UnsupportedError if no kernel serves the layer, listing what is
/// supported, and ConfigError.
std::vector<OpKernel> kernels_of(const Config& config, DType dtype, int capability);

/// The scratch and the schedule that every GPU asks of a decoder of this size; needs no GPU.
DecodeMemory decode_memory(const DecodeSize& size);

}  // namespace cpnsa::cuda
