#pragma once

#include <cuda_runtime_api.h>

#include "cpnsa/ops.hpp"

namespace cpnsa::cuda {

/// Enqueues an op that every GPU runs by the same kernels and that has no tile of queries or keys: copies, sums and
/// conversions of rows. A specialization per op is defined in the file of its kernels.
template <class Op>
void run_op(const Op& op, cudaStream_t stream);

}  // namespace cpnsa::cuda
