#include <cmath>

#include "examples/model/cuda/launch.cuh"
#include "examples/model/cuda/operations.hpp"
#include "examples/model/tensor.hpp"

namespace model {
namespace {

using namespace cuda;

__device__ float warp_max(float value) {
  for (int distance = warp_size / 2; distance > 0; distance /= 2)
    value = fmaxf(value, __shfl_xor_sync(~0u, value, distance));
  return value;
}

// One warp per row. dlogits, logits [rows, columns], losses and targets [rows]
__global__ void cross_entropy_rows(Narrow* dlogits, double* losses, const float* logits, const std::int32_t* targets,
                                   float scale, std::int64_t rows, std::int64_t columns) {
  for (std::int64_t row = first_row(); row < rows; row += row_stride()) {
    const float* in = logits + row * columns;
    Narrow* gradient = dlogits + row * columns;
    const std::int32_t target = targets[row];
    float largest = -INFINITY, sum = 0;
    for (std::int64_t c = lane(); c < columns; c += warp_size) largest = fmaxf(largest, in[c]);
    largest = warp_max(largest);
    for (std::int64_t c = lane(); c < columns; c += warp_size) sum += expf(in[c] - largest);
    sum = warp_sum(sum);
    const float factor = target == ignored ? 0.0f : scale / sum;
    for (std::int64_t c = lane(); c < columns; c += warp_size)
      gradient[c] = __float2bfloat16(factor * expf(in[c] - largest) - (c == target ? scale : 0.0f));
    if (lane() == 0) losses[row] = target == ignored ? 0.0 : static_cast<double>(logf(sum) - (in[target] - largest));
  }
}

__global__ void argmax_of_rows(std::int32_t* best, const float* logits, std::int64_t rows, std::int64_t columns) {
  for (std::int64_t row = first_row(); row < rows; row += row_stride()) {
    const float* in = logits + row * columns;
    int index = lane() < columns ? lane() : 0;
    for (int c = lane(); c < columns; c += warp_size)
      if (in[c] > in[index]) index = c;
    for (int distance = warp_size / 2; distance > 0; distance /= 2) {
      const int other = __shfl_xor_sync(~0u, index, distance);
      if (in[other] > in[index] || (in[other] == in[index] && other < index)) index = other;
    }
    if (lane() == 0) best[row] = index;
  }
}

}  // namespace

double CudaOperations::cross_entropy(const TensorView& dlogits, const TensorView& logits, TokenView targets,
                                     double scale) {
  const std::int64_t rows = logits.shape[0], columns = logits.shape[1];
  if (rows == 0) return 0;
  const Tensor losses(*this, DType::f64, {rows});
  cross_entropy_rows<<<blocks_for(rows, block_warps), block_threads, 0, native()>>>(
      data<Narrow>(dlogits), data<double>(losses), data<float>(logits), targets.data, static_cast<float>(scale), rows,
      columns);
  check_launch("cross_entropy_rows");
  return sum(losses);
}

void CudaOperations::argmax(TokenView best, const TensorView& logits) {
  if (best.count == 0) return;
  argmax_of_rows<<<blocks_for(best.count, block_warps), block_threads, 0, native()>>>(best.data, data<float>(logits),
                                                                                      best.count, logits.shape[1]);
  check_launch("argmax_of_rows");
}

}  // namespace model
