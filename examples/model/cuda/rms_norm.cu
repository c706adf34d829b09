#include <algorithm>

#include "examples/model/cuda/launch.cuh"
#include "examples/model/cuda/operations.hpp"
#include "examples/model/tensor.hpp"

namespace model {
namespace {

using namespace cuda;

constexpr std::int64_t rows_per_part = 256;  // rows that are summed before the sums of parts are

// One warp per row. y, x [rows, columns], inverse [rows], gain [columns]
__global__ void rms_norm_rows(Narrow* y, float* inverse, const float* x, const float* gain, std::int64_t rows,
                              std::int64_t columns) {
  for (std::int64_t row = first_row(); row < rows; row += row_stride()) {
    const float* in = x + row * columns;
    float squares = 0;
    for (std::int64_t c = lane(); c < columns; c += warp_size) squares += in[c] * in[c];
    const float scale =
        1.0f / sqrtf(warp_sum(squares) / static_cast<float>(columns) + static_cast<float>(rms_norm_epsilon));
    if (lane() == 0) inverse[row] = scale;
    for (std::int64_t c = lane(); c < columns; c += warp_size)
      y[row * columns + c] = __float2bfloat16(in[c] * scale * gain[c]);
  }
}

__global__ void rms_norm_backward_rows(float* dx, const float* dy, const float* x, const float* inverse,
                                       const float* gain, std::int64_t rows, std::int64_t columns) {
  for (std::int64_t row = first_row(); row < rows; row += row_stride()) {
    const float *in = x + row * columns, *dout = dy + row * columns;
    float along = 0;  // sum of dy gain x, the part of the gradient along x
    for (std::int64_t c = lane(); c < columns; c += warp_size) along += dout[c] * gain[c] * in[c];
    const float scale = inverse[row];
    const float factor = warp_sum(along) * scale * scale * scale / static_cast<float>(columns);
    for (std::int64_t c = lane(); c < columns; c += warp_size)
      dx[row * columns + c] += dout[c] * gain[c] * scale - in[c] * factor;
  }
}

// sums [parts, columns]: sum of dy x inverse over the part's rows. Block (32, warps), one column per lane.
__global__ void gain_gradient_parts(float* sums, const float* dy, const float* x, const float* inverse,
                                    std::int64_t rows, std::int64_t columns) {
  __shared__ float of_warp[block_warps][warp_size];
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * warp_size + threadIdx.x;
  const std::int64_t begin = blockIdx.y * rows_per_part, end = min(rows, begin + rows_per_part);
  float sum = 0;
  if (column < columns)
    for (std::int64_t row = begin + threadIdx.y; row < end; row += block_warps)
      sum += dy[row * columns + column] * x[row * columns + column] * inverse[row];
  of_warp[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= columns) return;
  for (int warp = 1; warp < block_warps; ++warp) sum += of_warp[warp][threadIdx.x];
  sums[blockIdx.y * columns + column] = sum;
}

__global__ void add_gain_gradient_parts(float* dgain, const float* sums, std::int64_t parts, std::int64_t columns) {
  for (std::int64_t c = first_item(); c < columns; c += item_stride()) {
    float sum = dgain[c];
    for (std::int64_t part = 0; part < parts; ++part) sum += sums[part * columns + c];
    dgain[c] = sum;
  }
}

}  // namespace

void CudaOperations::rms_norm(const TensorView& y, const TensorView& inverse, const TensorView& x,
                              const TensorView& gain) {
  const std::int64_t rows = x.shape[0], columns = x.shape[1];
  if (rows == 0) return;
  rms_norm_rows<<<blocks_for(rows, block_warps), block_threads, 0, native()>>>(
      data<Narrow>(y), data<float>(inverse), data<float>(x), data<float>(gain), rows, columns);
  check_launch("rms_norm_rows");
}

void CudaOperations::rms_norm_backward(const TensorView& dx, const TensorView& dgain, const TensorView& dy,
                                       const TensorView& x, const TensorView& inverse, const TensorView& gain) {
  const std::int64_t rows = x.shape[0], columns = x.shape[1];
  if (rows == 0) return;
  rms_norm_backward_rows<<<blocks_for(rows, block_warps), block_threads, 0, native()>>>(
      data<float>(dx), data<float>(dy), data<float>(x), data<float>(inverse), data<float>(gain), rows, columns);
  check_launch("rms_norm_backward_rows");

  const std::int64_t parts = (rows + rows_per_part - 1) / rows_per_part;
  const Tensor sums(*this, DType::f32, {parts, columns});
  const dim3 grid(blocks_for(columns, warp_size), static_cast<unsigned>(parts));
  gain_gradient_parts<<<grid, dim3(warp_size, block_warps), 0, native()>>>(
      data<float>(sums), data<float>(dy), data<float>(x), data<float>(inverse), rows, columns);
  check_launch("gain_gradient_parts");
  add_gain_gradient_parts<<<blocks_for(columns, block_threads), block_threads, 0, native()>>>(
      data<float>(dgain), data<float>(sums), parts, columns);
  check_launch("add_gain_gradient_parts");
}

}  // namespace model
