#include "examples/model/rms_norm.hpp"

namespace model {

RmsNorm::RmsNorm(Parameters& parameters, std::int64_t width)
    : parameters_(parameters), gain_(parameters.add_constant(1, width, 1.0)) {}

Tensor RmsNorm::forward(const TensorView& x) {
  Operations& operations = parameters_.operations();
  x_ = copy(operations, x);
  inverse_ = Tensor(operations, operations.wide(), {x.shape[0]});
  Tensor y(operations, operations.narrow(), {x.shape[0], x.shape[1]});
  operations.rms_norm(y, inverse_, x, parameters_.value(gain_));
  return y;
}

void RmsNorm::backward(const TensorView& dy, const TensorView& dx) {
  parameters_.operations().rms_norm_backward(dx, parameters_.gradient(gain_), dy, x_, inverse_,
                                             parameters_.value(gain_));
}

}  // namespace model
