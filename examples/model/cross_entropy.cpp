#include "examples/model/cross_entropy.hpp"

#include <algorithm>
#include <cmath>

namespace model {

double cross_entropy(Matrix& logits, std::span<const std::uint8_t> targets, double scale) {
  double loss = 0;
  for (std::int64_t row = 0; row < logits.rows; ++row) {
    const std::span<double> values(logits.row(row), static_cast<std::size_t>(logits.columns));
    const std::size_t target = targets[static_cast<std::size_t>(row)];
    const double largest = *std::max_element(values.begin(), values.end());
    const double target_logit = values[target] - largest;
    double sum = 0;
    for (double& value : values) {
      value = std::exp(value - largest);
      sum += value;
    }
    loss += std::log(sum) - target_logit;
    for (double& value : values) value *= scale / sum;
    values[target] -= scale;
  }
  return loss;
}

}  // namespace model
