#include <thrust/binary_search.h>
#include <thrust/execution_policy.h>
#include <thrust/iterator/counting_iterator.h>
#include <thrust/sequence.h>
#include <thrust/sort.h>

#include "examples/model/cuda/launch.cuh"
#include "examples/model/cuda/operations.hpp"
#include "examples/model/tensor.hpp"

namespace model {
namespace {

using namespace cuda;

constexpr int parts = 16;  // parts of the rows that share a token; each is summed by one thread block

// x [rows, width], table [vocabulary, width]
__global__ void look_up_rows(float* x, const float* table, const std::int32_t* tokens, std::int64_t elements,
                             std::int64_t width) {
  for (std::int64_t i = first_item(); i < elements; i += item_stride())
    x[i] = table[tokens[i / width] * width + i % width];
}

// sums [parts, vocabulary, width]; rows [count] by token, starts [vocabulary + 1] into them
__global__ void add_rows_of_token(float* sums, const float* dx, const std::int32_t* rows, const std::int32_t* starts,
                                  std::int64_t width) {
  const int token = static_cast<int>(blockIdx.x), part = static_cast<int>(blockIdx.y);
  const int vocabulary = static_cast<int>(gridDim.x);
  const std::int64_t start = starts[token], count = starts[token + 1] - start;
  const std::int64_t begin = start + count * part / parts, end = start + count * (part + 1) / parts;
  for (std::int64_t column = threadIdx.x; column < width; column += blockDim.x) {
    float sum = 0;
    for (std::int64_t i = begin; i < end; ++i) sum += dx[rows[i] * width + column];
    sums[(static_cast<std::int64_t>(part) * vocabulary + token) * width + column] = sum;
  }
}

__global__ void add_parts(float* dtable, const float* sums, std::int64_t elements) {
  for (std::int64_t i = first_item(); i < elements; i += item_stride()) {
    float sum = dtable[i];
    for (int part = 0; part < parts; ++part) sum += sums[part * elements + i];
    dtable[i] = sum;
  }
}

}  // namespace

void CudaOperations::look_up(const TensorView& x, const TensorView& table, TokenView tokens) {
  if (tokens.count == 0) return;
  look_up_rows<<<blocks_for(x.elements(), block_threads), block_threads, 0, native()>>>(
      data<float>(x), data<float>(table), tokens.data, x.elements(), x.shape[1]);
  check_launch("look_up_rows");
}

// Rows are sorted by token, so that sums have a fixed order and need no atomics.
void CudaOperations::look_up_backward(const TensorView& dtable, const TensorView& dx, TokenView tokens) {
  if (tokens.count == 0) return;
  const std::int64_t vocabulary = dtable.shape[0], width = dtable.shape[1];
  const Tokens keys(*this, tokens.count), rows(*this, tokens.count), starts(*this, vocabulary + 1);
  const TokenView key = keys, row = rows, start = starts;
  const auto policy = thrust::cuda::par.on(native());
  device().copy(key.data, tokens.data, static_cast<std::size_t>(tokens.count) * sizeof(std::int32_t), stream());
  thrust::sequence(policy, row.data, row.data + row.count);
  thrust::stable_sort_by_key(policy, key.data, key.data + key.count, row.data);
  const thrust::counting_iterator<std::int32_t> every_token(0);
  thrust::lower_bound(policy, key.data, key.data + key.count, every_token, every_token + start.count, start.data);

  const Tensor sums(*this, DType::f32, {parts, vocabulary * width});
  add_rows_of_token<<<dim3(static_cast<unsigned>(vocabulary), parts), block_threads, 0, native()>>>(
      data<float>(sums), data<float>(dx), row.data, start.data, width);
  check_launch("add_rows_of_token");
  add_parts<<<blocks_for(dtable.elements(), block_threads), block_threads, 0, native()>>>(
      data<float>(dtable), data<float>(sums), dtable.elements());
  check_launch("add_parts");
}

}  // namespace model
