#include <algorithm>
#include <cmath>

#include "examples/model/cpu/operations.hpp"

namespace model {

double CpuOperations::cross_entropy(const TensorView& dlogits, const TensorView& logits, TokenView targets,
                                    double scale) {
  return with_type(wide(), [&](auto zero) {
    using Real = decltype(zero);
    const std::int64_t columns = logits.shape[1];
    double loss = 0;
    for (std::int64_t i = 0; i < logits.shape[0]; ++i) {
      const Real* in = row<Real>(logits, i);
      Real* gradient = row<Real>(dlogits, i);
      const std::int32_t target = targets.data[i];
      if (target == ignored) {
        std::fill_n(gradient, columns, Real(0));
        continue;
      }
      const Real largest = *std::max_element(in, in + columns);
      Real sum = 0;
      for (std::int64_t c = 0; c < columns; ++c) sum += gradient[c] = std::exp(in[c] - largest);
      loss += static_cast<double>(std::log(sum) - (in[target] - largest));
      for (std::int64_t c = 0; c < columns; ++c) gradient[c] *= static_cast<Real>(scale) / sum;
      gradient[target] -= static_cast<Real>(scale);
    }
    return loss;
  });
}

void CpuOperations::argmax(TokenView best, const TensorView& logits) {
  with_type(wide(), [&](auto zero) {
    using Real = decltype(zero);
    for (std::int64_t i = 0; i < logits.shape[0]; ++i) {
      const Real* in = row<Real>(logits, i);
      best.data[i] = static_cast<std::int32_t>(std::max_element(in, in + logits.shape[1]) - in);
    }
  });
}

}  // namespace model
