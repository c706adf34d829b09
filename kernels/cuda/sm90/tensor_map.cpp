#include "kernels/cuda/sm90/tensor_map.hpp"

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include "cpnsa/error.hpp"
#include "kernels/cuda/common/check.hpp"
#include "kernels/cuda/common/swizzle.hpp"

namespace cpnsa::cuda::sm90 {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

// The driver's function without linking the driver's library, which a machine that only builds does not have.
Encode encode() {
  static const Encode function = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found{};
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found),
          "cudaGetDriverEntryPointByVersion");
    if (found != cudaDriverEntryPointSuccess || !entry)
      throw DeviceError("cuda device: found a driver without cuTensorMapEncodeTiled, expected one of CUDA 12 or later");
    return reinterpret_cast<Encode>(entry);
  }();
  return function;
}

}  // namespace

CUtensorMap make_tensor_map(const void* tensor, DType dtype, const TensorLayout& layout) {
  const CUtensorMapDataType type =
      dtype == DType::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const auto size = [](auto value) { return static_cast<cuuint64_t>(value); };
  const cuuint64_t shape[3] = {size(layout.shape[0]), size(layout.shape[1]), size(layout.shape[2])};
  const cuuint64_t strides[2] = {size(layout.strides[0]) * element_bytes, size(layout.strides[1]) * element_bytes};
  const cuuint32_t box[3] = {panel_channels, static_cast<cuuint32_t>(layout.box[0]),
                             static_cast<cuuint32_t>(layout.box[1])};
  const cuuint32_t steps[3] = {1, 1, 1};
  CUtensorMap map{};
  const CUresult status =
      encode()(&map, type, 3, const_cast<void*>(tensor), shape, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
               CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    throw DeviceError(fmt::format("cuTensorMapEncodeTiled: found error {} for a tensor of shape [{}, {}, {}] at {}",
                                  static_cast<int>(status), shape[2], shape[1], shape[0], tensor));
  return map;
}

}  // namespace cpnsa::cuda::sm90
