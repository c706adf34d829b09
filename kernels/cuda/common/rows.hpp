#pragma once

// Copies, sums and conversions of rows; Device's virtuals of the same names call them. Each enqueues on the stream and
// returns.

#include <cuda_runtime_api.h>

#include "cpnsa/ops.hpp"

namespace cpnsa::cuda {

void copy_rows(const CopyRows&, cudaStream_t);
void add_rows(const AddRows&, cudaStream_t);
void convert(const Convert&, cudaStream_t);

}  // namespace cpnsa::cuda
