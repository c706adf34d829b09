#include "examples/model/adamw.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace model {

AdamW::AdamW(const Parameters& parameters, double learning_rate, std::int64_t steps)
    : learning_rate_(learning_rate),
      steps_(steps),
      mean_(parameters.values.size()),
      square_(parameters.values.size()) {}

double AdamW::rate() const {
  const double warm_up = std::min<double>(20, static_cast<double>(steps_) / 10 + 1);
  const double progress = static_cast<double>(done_) / static_cast<double>(steps_);
  const double decay = 0.1 + 0.9 * (0.5 + 0.5 * std::cos(std::numbers::pi * progress));
  return learning_rate_ * decay * std::min(1.0, static_cast<double>(done_) / warm_up);
}

void AdamW::step(Parameters& parameters) {
  constexpr double mean_decay = 0.9, square_decay = 0.95, epsilon = 1e-8, weight_decay = 0.01, largest_norm = 1.0;
  ++done_;
  double squares = 0;
  for (const double gradient : parameters.gradients) squares += gradient * gradient;
  const double clip = std::min(1.0, largest_norm / (std::sqrt(squares) + epsilon));
  const double mean_scale = 1.0 / (1.0 - std::pow(mean_decay, static_cast<double>(done_)));
  const double square_scale = 1.0 / (1.0 - std::pow(square_decay, static_cast<double>(done_)));
  const double learning_rate = rate();
  for (std::size_t i = 0; i < parameters.values.size(); ++i) {
    const double gradient = clip * parameters.gradients[i];
    mean_[i] += (1.0 - mean_decay) * (gradient - mean_[i]);
    square_[i] += (1.0 - square_decay) * (gradient * gradient - square_[i]);
    const double decay = parameters.decayed[i] ? weight_decay * parameters.values[i] : 0.0;
    const double change = mean_[i] * mean_scale / (std::sqrt(square_[i] * square_scale) + epsilon) + decay;
    parameters.values[i] -= learning_rate * change;
  }
}

}  // namespace model
