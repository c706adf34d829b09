#pragma once

// The copy engine: boxes of tensors into shared memory under 128-byte swizzle.

#include <cuda.h>

#include <array>
#include <cstdint>

namespace emulation {

/// The contents of a CUtensorMap here.
struct TensorMap {
  const unsigned char* tensor;
  std::int64_t shape[3];
  std::int64_t strides[2];  ///< bytes
  int box[3];
};
static_assert(sizeof(TensorMap) <= sizeof(CUtensorMap));

/// cuTensorMapEncodeTiled, for what the project asks of it; refuses what the driver would.
CUresult encode_tiled(CUtensorMap*, CUtensorMapDataType, cuuint32_t rank, void* tensor, const cuuint64_t* shape,
                      const cuuint64_t* strides, const cuuint32_t* box, const cuuint32_t* steps, CUtensorMapInterleave,
                      CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

/// cp.async.bulk.tensor.3d: lands when it must.
void start_tensor_copy(std::uint32_t destination, const CUtensorMap& map, std::uint32_t barrier,
                       std::array<int, 3> first);

}  // namespace emulation
