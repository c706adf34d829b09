#include "examples/model/cuda/launch.cuh"
#include "examples/model/cuda/operations.hpp"

namespace model {
namespace {

using namespace cuda;

struct Numbers {
  float clip, learning_rate, mean_decay, square_decay, mean_scale, square_scale, epsilon, weight_decay;
};

// All [count].
__global__ void adamw_elements(float* values, float* means, float* squares, const float* gradients,
                               const std::uint8_t* decayed, std::int64_t count, Numbers s) {
  for (std::int64_t i = first_item(); i < count; i += item_stride()) {
    const float gradient = s.clip * gradients[i];
    const float mean = means[i] + (1.0f - s.mean_decay) * (gradient - means[i]);
    const float square = squares[i] + (1.0f - s.square_decay) * (gradient * gradient - squares[i]);
    const float decay = decayed[i] ? s.weight_decay * values[i] : 0.0f;
    means[i] = mean;
    squares[i] = square;
    values[i] -= s.learning_rate * (mean * s.mean_scale / (sqrtf(square * s.square_scale) + s.epsilon) + decay);
  }
}

}  // namespace

void CudaOperations::adamw(const AdamWStep& s) {
  const std::int64_t count = s.values.elements();
  const auto narrowed = [](double number) { return static_cast<float>(number); };
  const Numbers numbers{narrowed(s.clip),         narrowed(s.learning_rate), narrowed(s.mean_decay),
                        narrowed(s.square_decay), narrowed(s.mean_scale),    narrowed(s.square_scale),
                        narrowed(s.epsilon),      narrowed(s.weight_decay)};
  adamw_elements<<<blocks_for(count, block_threads), block_threads, 0, native()>>>(
      data<float>(s.values), data<float>(s.mean), data<float>(s.square), data<float>(s.gradients), s.decayed, count,
      numbers);
  check_launch("adamw_elements");
}

}  // namespace model
