#pragma once

// Every CUDA and cuBLAS call and every launch is checked through these; a failure is a DeviceError that names the call
// and the place.

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <source_location>

namespace cpnsa::cuda {

void check(cudaError_t status, const char* call, std::source_location where = std::source_location::current());
void check(cublasStatus_t status, const char* call, std::source_location where = std::source_location::current());

/// After a launch: whether the kernel could be started.
void check_launch(const char* kernel, std::source_location where = std::source_location::current());

}  // namespace cpnsa::cuda
