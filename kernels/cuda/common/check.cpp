#include "kernels/cuda/common/check.hpp"

#include <fmt/format.h>

#include <string_view>

#include "cpnsa/error.hpp"

namespace cpnsa::cuda {
namespace {

[[noreturn]] void fail(std::string_view call, std::string_view name, std::string_view meaning,
                       const std::source_location& where) {
  std::string_view file = where.file_name();
  if (const auto root = file.rfind("kernels/cuda/"); root != std::string_view::npos) file.remove_prefix(root);
  throw DeviceError(
      fmt::format("cuda device: {} failed with {} ({}), at {}:{}", call, name, meaning, file, where.line()));
}

}  // namespace

void check(cudaError_t status, const char* call, std::source_location where) {
  if (status == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());  // the error is reported here; later checks report what comes later
  fail(call, cudaGetErrorName(status), cudaGetErrorString(status), where);
}

void check(cublasStatus_t status, const char* call, std::source_location where) {
  if (status != CUBLAS_STATUS_SUCCESS)
    fail(call, cublasLtGetStatusName(status), cublasLtGetStatusString(status), where);
}

void check_launch(const char* kernel, std::source_location where) {
  check(cudaGetLastError(), kernel, where);
}

}  // namespace cpnsa::cuda
