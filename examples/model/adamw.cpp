#include "examples/model/adamw.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace model {

AdamW::AdamW(Parameters& parameters, double learning_rate, std::int64_t steps)
    : parameters_(parameters),
      learning_rate_(learning_rate),
      steps_(steps),
      mean_(zeros(parameters.operations(), parameters.operations().wide(), {parameters.values().elements()})),
      square_(zeros(parameters.operations(), parameters.operations().wide(), {parameters.values().elements()})) {}

double AdamW::rate() const {
  const double warm_up = std::min<double>(20, static_cast<double>(steps_) / 10 + 1);
  const double progress = static_cast<double>(done_) / static_cast<double>(steps_);
  const double decay = 0.1 + 0.9 * (0.5 + 0.5 * std::cos(std::numbers::pi * progress));
  return learning_rate_ * decay * std::min(1.0, static_cast<double>(done_) / warm_up);
}

void AdamW::step() {
  constexpr double mean_decay = 0.9, square_decay = 0.95, epsilon = 1e-8, weight_decay = 0.01, max_norm = 1.0;
  ++done_;
  Operations& operations = parameters_.operations();
  const double norm = std::sqrt(operations.sum_of_squares(parameters_.gradients()));
  AdamWStep step{};
  step.values = parameters_.values();
  step.mean = mean_;
  step.square = square_;
  step.gradients = parameters_.gradients();
  step.decayed = parameters_.decayed();
  step.clip = std::min(1.0, max_norm / (norm + epsilon));
  step.learning_rate = rate();
  step.mean_decay = mean_decay;
  step.square_decay = square_decay;
  step.mean_scale = 1.0 / (1.0 - std::pow(mean_decay, static_cast<double>(done_)));
  step.square_scale = 1.0 / (1.0 - std::pow(square_decay, static_cast<double>(done_)));
  step.epsilon = epsilon;
  step.weight_decay = weight_decay;
  operations.adamw(step);
  parameters_.round();
}

}  // namespace model
