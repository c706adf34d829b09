#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "cpnsa/decode_ops.hpp"
#include "kernels/cuda/common/gpu.hpp"

namespace cpnsa::cuda::decode {

/// Enqueues an op that decodes; the kernels serve every GPU of compute capability 8.0 or later. A specialization per op
/// is defined in the file of its kernels, so a missing one is an error of the linker.
template <class Op>
void run_op(const Op& op, const Gpu& gpu, cudaStream_t stream);

/// Throws UnsupportedError, listing what is supported, unless the kernels serve the configuration, the type and pages
/// of `page` tokens.
void check_limits(const Config& config, DType dtype, std::int64_t page);

/// Bytes of DecodeContext::scratch and of the schedule; each from the code that lays it out.
std::size_t scratch_bytes(const DecodeSize& size);
std::size_t schedule_bytes(const DecodeSize& size);

}  // namespace cpnsa::cuda::decode
