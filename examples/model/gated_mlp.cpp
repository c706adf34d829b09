#include "examples/model/gated_mlp.hpp"

#include <cmath>

#include "examples/model/linear.hpp"

namespace model {

GatedMlp::GatedMlp(Parameters& parameters, std::int64_t width, std::int64_t hidden, double out_deviation)
    : parameters_(parameters),
      gate_(parameters.add_normal(width, hidden, 1.0 / std::sqrt(static_cast<double>(width)))),
      up_(parameters.add_normal(width, hidden, 1.0 / std::sqrt(static_cast<double>(width)))),
      down_(parameters.add_normal(hidden, width, out_deviation)) {}

void GatedMlp::forward(Tensor x, const TensorView& sum) {
  Operations& operations = parameters_.operations();
  x_ = std::move(x);
  gated_ = linear(parameters_, gate_, x_, operations.narrow());
  raised_ = linear(parameters_, up_, x_, operations.narrow());
  hidden_ = Tensor(operations, operations.narrow(), {x_.rows(), gate_.columns});
  operations.gated(hidden_, gated_, raised_);
  add_linear(sum, parameters_, down_, hidden_);
}

Tensor GatedMlp::backward(const TensorView& dy) {
  Operations& operations = parameters_.operations();
  const auto make = [&] { return Tensor(operations, operations.narrow(), {hidden_.rows(), hidden_.columns()}); };
  const Tensor dhidden = make(), dgated = make(), draised = make();
  linear_backward(parameters_, down_, hidden_, dy, dhidden, Into::set);
  operations.gated_backward(dgated, draised, dhidden, gated_, raised_);
  Tensor dx(operations, operations.wide(), {x_.rows(), x_.columns()});
  linear_backward(parameters_, gate_, x_, dgated, dx, Into::set);
  linear_backward(parameters_, up_, x_, draised, dx, Into::add);
  return dx;
}

}  // namespace model
