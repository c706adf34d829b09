#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "cpnsa/ops.hpp"
#include "kernels/cuda/common/handles.hpp"

namespace cpnsa::cuda::sm80 {

/// Enqueues an op by the kernels for every GPU of compute capability 8.0 or later. A specialization per op is defined
/// in the file of its kernels, so a missing one is an error of the linker.
template <class Op>
void run_op(const Op& op, cudaStream_t stream);

/// The same for ops whose matrix products are cuBLASLt's.
template <class Op>
void run_op(const Op& op, Handles& handles, cudaStream_t stream);

/// Bytes of OpContext::scratch that ops need, each from the code that lays it out.
std::size_t compress_scratch_bytes(const ProblemSize&);
std::size_t compressed_attention_backward_scratch_bytes(const ProblemSize&);
std::size_t selected_attention_backward_scratch_bytes(const ProblemSize&);

}  // namespace cpnsa::cuda::sm80
