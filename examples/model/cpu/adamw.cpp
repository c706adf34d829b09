#include <cmath>

#include "examples/model/cpu/operations.hpp"

namespace model {

void CpuOperations::adamw(const AdamWStep& s) {
  with_type(wide(), [&](auto zero) {
    using Real = decltype(zero);
    const auto* gradients = static_cast<const Real*>(s.gradients.data);
    auto *values = static_cast<Real*>(s.values.data), *means = static_cast<Real*>(s.mean.data),
         *squares = static_cast<Real*>(s.square.data);
    for (std::int64_t i = 0; i < s.values.elements(); ++i) {
      const double gradient = s.clip * gradients[i];
      const double mean = means[i] + (1 - s.mean_decay) * (gradient - means[i]);
      const double square = squares[i] + (1 - s.square_decay) * (gradient * gradient - squares[i]);
      const double decay = s.decayed[i] ? s.weight_decay * values[i] : 0.0;
      const double change = mean * s.mean_scale / (std::sqrt(square * s.square_scale) + s.epsilon) + decay;
      means[i] = static_cast<Real>(mean);
      squares[i] = static_cast<Real>(square);
      values[i] = static_cast<Real>(values[i] - s.learning_rate * change);
    }
  });
}

}  // namespace model
