#include "examples/model/gated_mlp.hpp"

#include <cmath>

#include "examples/model/linear.hpp"

namespace model {

GatedMlp::GatedMlp(Parameters& parameters, std::int64_t width, std::int64_t hidden, double out_deviation)
    : parameters_(parameters),
      gate_(parameters.add_normal(width, hidden, 1.0 / std::sqrt(static_cast<double>(width)))),
      up_(parameters.add_normal(width, hidden, 1.0 / std::sqrt(static_cast<double>(width)))),
      down_(parameters.add_normal(hidden, width, out_deviation)) {}

Matrix GatedMlp::forward(const Matrix& x) {
  x_ = x;
  gated_ = linear(parameters_, gate_, x);
  raised_ = linear(parameters_, up_, x);
  sigmoid_ = Matrix(x.rows, gate_.columns);
  hidden_ = Matrix(x.rows, gate_.columns);
  for (std::size_t i = 0; i < hidden_.values.size(); ++i) {
    sigmoid_.values[i] = 1.0 / (1.0 + std::exp(-gated_.values[i]));
    hidden_.values[i] = gated_.values[i] * sigmoid_.values[i] * raised_.values[i];
  }
  return linear(parameters_, down_, hidden_);
}

void GatedMlp::backward(const Matrix& dy, Matrix& dx) {
  Matrix dhidden(hidden_.rows, hidden_.columns);
  linear_backward(parameters_, down_, hidden_, dy, dhidden);
  Matrix dgated(hidden_.rows, hidden_.columns);
  Matrix draised(hidden_.rows, hidden_.columns);
  for (std::size_t i = 0; i < dhidden.values.size(); ++i) {
    const double gate = gated_.values[i], sigmoid = sigmoid_.values[i];
    draised.values[i] = dhidden.values[i] * gate * sigmoid;
    dgated.values[i] = dhidden.values[i] * raised_.values[i] * sigmoid * (1.0 + gate * (1.0 - sigmoid));
  }
  linear_backward(parameters_, gate_, x_, dgated, dx);
  linear_backward(parameters_, up_, x_, draised, dx);
}

}  // namespace model
