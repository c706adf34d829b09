#pragma once

// Every CUDA and cuBLAS call is checked through these; a failure is a cpnsa::DeviceError that names the call.

#include <cublas_v2.h>
#include <cuda_runtime_api.h>

namespace model::cuda {

void check(cudaError_t status, const char* call);
void check(cublasStatus_t status, const char* call);

/// After a launch: whether the kernel could be started.
void check_launch(const char* kernel);

}  // namespace model::cuda
