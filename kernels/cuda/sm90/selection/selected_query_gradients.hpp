#pragma once

#include <cuda_runtime_api.h>

#include "cpnsa/ops.hpp"
#include "kernels/cuda/common/gpu.hpp"

namespace cpnsa::cuda::sm90 {

/// The query-outer half of the selected branch's backward: dQ.
void selected_query_gradients(const SelectedAttentionBackward&, const Gpu&, cudaStream_t);

}  // namespace cpnsa::cuda::sm90
