#include "examples/model/cuda/launch.cuh"
#include "examples/model/cuda/operations.hpp"

namespace model {
namespace {

using namespace cuda;

// One thread per pair of channels. x [rows, heads, 2 half], cosine and sine [rows, half]
__global__ void rotate_pairs(Narrow* x, const float* cosine, const float* sine, float direction, std::int64_t pairs,
                             std::int64_t heads, std::int64_t half) {
  for (std::int64_t i = first_item(); i < pairs; i += item_stride()) {
    const std::int64_t pair = i % half, head = i / half, row = head / heads;
    Narrow* channels = x + head * 2 * half + pair;
    const float first = __bfloat162float(channels[0]), second = __bfloat162float(channels[half]);
    const float straight = cosine[row * half + pair], turned = direction * sine[row * half + pair];
    channels[0] = __float2bfloat16(first * straight - second * turned);
    channels[half] = __float2bfloat16(second * straight + first * turned);
  }
}

}  // namespace

void CudaOperations::rotate(const TensorView& x, const TensorView& cosine, const TensorView& sine, double direction) {
  if (x.elements() == 0) return;
  const std::int64_t half = cosine.shape[1], pairs = x.elements() / 2;
  rotate_pairs<<<blocks_for(pairs, block_threads), block_threads, 0, native()>>>(
      data<Narrow>(x), data<float>(cosine), data<float>(sine), static_cast<float>(direction), pairs,
      x.shape[1] / (2 * half), half);
  check_launch("rotate_pairs");
}

}  // namespace model
