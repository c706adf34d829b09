#pragma once

#include <cuda_runtime_api.h>
#include <nccl.h>

namespace cpnsa::nccl {

/// Throws CommunicationError with NCCL's own text unless the call succeeded. `handle` may be null.
void check(ncclResult_t status, const char* call, ncclComm_t handle);

/// Throws DeviceError with CUDA's own text unless the call succeeded.
void check(cudaError_t status, const char* call);

/// Makes a device current on the calling thread while it lives.
class CurrentDevice {
 public:
  explicit CurrentDevice(int index) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    check(cudaSetDevice(index), "cudaSetDevice");
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;
  ~CurrentDevice() { cudaSetDevice(before_); }

 private:
  int before_ = 0;
};

}  // namespace cpnsa::nccl
