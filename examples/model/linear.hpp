#pragma once

#include "examples/model/matrix.hpp"
#include "examples/model/parameters.hpp"

namespace model {

/// The model's matrix products, all of them.

/// x W, W [in, out].
Matrix linear(const Parameters& parameters, const Weight& weight, const Matrix& x);

/// dW += x^T dy; dx += dy W^T.
void linear_backward(Parameters& parameters, const Weight& weight, const Matrix& x, const Matrix& dy, Matrix& dx);

}  // namespace model
