#pragma once

#include <cuda_runtime_api.h>

#include "cpnsa/ops.hpp"
#include "kernels/cuda/common/gpu.hpp"

namespace cpnsa::cuda::sm90 {

/// The kernel for any number of query heads per KV head, summaries and blocks.
void select_blocks_any_heads(const SelectBlocks&, const Gpu&, cudaStream_t);

}  // namespace cpnsa::cuda::sm90
