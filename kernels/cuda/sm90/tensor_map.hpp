#pragma once

#include <cuda.h>

#include <cstdint>

#include "cpnsa/dtype.hpp"

namespace cpnsa::cuda::sm90 {

/// A tensor of three dimensions, innermost first and contiguous.
struct TensorLayout {
  std::int64_t shape[3];
  std::int64_t strides[2];  ///< elements from item to item of the second and of the third dimension
  int box[2];               ///< items of the second and of the third dimension that one copy brings
};

/// [rows, heads, dim]: boxes of `box_rows` rows of `box_heads` heads.
inline TensorLayout rows_layout(std::int64_t rows, std::int64_t heads, std::int64_t dim, int box_rows, int box_heads) {
  return {{dim, heads, rows}, {dim, dim * heads}, {box_heads, box_rows}};
}

/// The copy engine's view of a tensor of 16-bit elements, in boxes of 64 of the innermost dimension: in shared memory
/// rows of 128 bytes, the second dimension before the third, under 128-byte swizzle. DeviceError when the driver
/// refuses it.
CUtensorMap make_tensor_map(const void* tensor, DType dtype, const TensorLayout& layout);

}  // namespace cpnsa::cuda::sm90
