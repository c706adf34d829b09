#include "examples/model/cuda/launch.cuh"
#include "examples/model/cuda/operations.hpp"

namespace model {
namespace {

using namespace cuda;

__device__ float sigmoid_of(float x) {
  return 1.0f / (1.0f + expf(-x));
}

__global__ void gate_elements(Narrow* hidden, const Narrow* gate, const Narrow* up, std::int64_t elements) {
  for (std::int64_t i = first_item(); i < elements; i += item_stride()) {
    const float g = __bfloat162float(gate[i]);
    hidden[i] = __float2bfloat16(g * sigmoid_of(g) * __bfloat162float(up[i]));
  }
}

__global__ void gate_elements_backward(Narrow* dgate, Narrow* dup, const Narrow* dhidden, const Narrow* gate,
                                       const Narrow* up, std::int64_t elements) {
  for (std::int64_t i = first_item(); i < elements; i += item_stride()) {
    const float g = __bfloat162float(gate[i]), d = __bfloat162float(dhidden[i]), sigmoid = sigmoid_of(g);
    dup[i] = __float2bfloat16(d * g * sigmoid);
    dgate[i] = __float2bfloat16(d * __bfloat162float(up[i]) * sigmoid * (1.0f + g * (1.0f - sigmoid)));
  }
}

}  // namespace

void CudaOperations::gated(const TensorView& hidden, const TensorView& gate, const TensorView& up) {
  const std::int64_t elements = hidden.elements();
  if (elements == 0) return;
  gate_elements<<<blocks_for(elements, block_threads), block_threads, 0, native()>>>(
      data<Narrow>(hidden), data<Narrow>(gate), data<Narrow>(up), elements);
  check_launch("gate_elements");
}

void CudaOperations::gated_backward(const TensorView& dgate, const TensorView& dup, const TensorView& dhidden,
                                    const TensorView& gate, const TensorView& up) {
  const std::int64_t elements = dhidden.elements();
  if (elements == 0) return;
  gate_elements_backward<<<blocks_for(elements, block_threads), block_threads, 0, native()>>>(
      data<Narrow>(dgate), data<Narrow>(dup), data<Narrow>(dhidden), data<Narrow>(gate), data<Narrow>(up), elements);
  check_launch("gate_elements_backward");
}

}  // namespace model
