#include <thrust/execution_policy.h>
#include <thrust/functional.h>
#include <thrust/reduce.h>
#include <thrust/transform_reduce.h>

#include "examples/model/cuda/launch.cuh"
#include "examples/model/cuda/operations.hpp"

namespace model {
namespace {

using namespace cuda;

struct Square {
  __host__ __device__ double operator()(float value) const { return static_cast<double>(value) * value; }
};

// sum [count], parts [ranks, count]
__global__ void sum_elements(float* sum, const float* parts, std::int64_t count, std::int64_t ranks) {
  for (std::int64_t i = first_item(); i < count; i += item_stride()) {
    float total = parts[i];
    for (std::int64_t rank = 1; rank < ranks; ++rank) total += parts[rank * count + i];
    sum[i] = total;
  }
}

}  // namespace

double CudaOperations::sum_of_squares(const TensorView& values) {
  const float* first = data<float>(values);
  return thrust::transform_reduce(thrust::cuda::par.on(native()), first, first + values.elements(), Square(), 0.0,
                                  thrust::plus<double>());
}

double CudaOperations::sum(const TensorView& values) const {
  const double* first = data<double>(values);
  return thrust::reduce(thrust::cuda::par.on(native()), first, first + values.elements(), 0.0);
}

void CudaOperations::sum_parts(const TensorView& sum, const TensorView& parts) {
  const std::int64_t count = sum.elements();
  if (count == 0) return;
  sum_elements<<<blocks_for(count, block_threads), block_threads, 0, native()>>>(data<float>(sum), data<float>(parts),
                                                                                 count, parts.shape[0]);
  check_launch("sum_elements");
}

}  // namespace model
