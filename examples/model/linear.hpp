#pragma once

#include "examples/model/parameters.hpp"
#include "examples/model/tensor.hpp"

namespace model {

/// Returns x W in the given type; W is [in, out], x narrow.
Tensor linear(const Parameters& parameters, const Weight& weight, const TensorView& x, DType dtype);

/// y += x W.
void add_linear(const TensorView& y, const Parameters& parameters, const Weight& weight, const TensorView& x);

/// dW += x^T dy, dx (+)= dy W^T; x and dy are narrow, dx is of either type.
void linear_backward(const Parameters& parameters, const Weight& weight, const TensorView& x, const TensorView& dy,
                     const TensorView& dx, Into into);

}  // namespace model
