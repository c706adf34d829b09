#include "examples/model/linear.hpp"

namespace model {

Tensor linear(const Parameters& parameters, const Weight& weight, const TensorView& x, DType dtype) {
  Tensor y(parameters.operations(), dtype, {x.shape[0], weight.columns});
  parameters.operations().product(y, x, parameters.rounded(weight), Transposed::none, Into::set);
  return y;
}

void add_linear(const TensorView& y, const Parameters& parameters, const Weight& weight, const TensorView& x) {
  parameters.operations().product(y, x, parameters.rounded(weight), Transposed::none, Into::add);
}

void linear_backward(const Parameters& parameters, const Weight& weight, const TensorView& x, const TensorView& dy,
                     const TensorView& dx, Into into) {
  Operations& operations = parameters.operations();
  operations.product(parameters.gradient(weight), x, dy, Transposed::a, Into::add);
  operations.product(dx, dy, parameters.rounded(weight), Transposed::b, into);
}

}  // namespace model
