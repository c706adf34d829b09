#include "examples/model/cuda/check.hpp"

#include <string>

#include "cpnsa/error.hpp"

namespace model::cuda {

void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());
  throw cpnsa::DeviceError(std::string(call) + ": found \"" + cudaGetErrorString(status) + "\", expected success");
}

void check(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw cpnsa::DeviceError(std::string(call) + ": found \"" + cublasGetStatusString(status) + "\", expected success");
}

void check_launch(const char* kernel) {
  check(cudaGetLastError(), kernel);
}

}  // namespace model::cuda
