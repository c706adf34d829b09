#include "comm/nccl/nccl_call.hpp"

#include <fmt/format.h>

#include "cpnsa/error.hpp"

namespace cpnsa::nccl {

void check(ncclResult_t status, const char* call, ncclComm_t handle) {
  if (status == ncclSuccess) return;
  const char* detail = ncclGetLastError(handle);
  throw CommunicationError(fmt::format("{}: found \"{}\"{}{}, expected success", call, ncclGetErrorString(status),
                                       detail && *detail ? ": " : "", detail ? detail : ""));
}

void check(cudaError_t status, const char* call) {
  if (status != cudaSuccess)
    throw DeviceError(fmt::format("{}: found \"{}\", expected success", call, cudaGetErrorString(status)));
}

}  // namespace cpnsa::nccl
