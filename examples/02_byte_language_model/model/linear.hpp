#pragma once

#include "model/matrix.hpp"
#include "model/parameters.hpp"

namespace language_model {

/// The model's matrix products, all of them.

/// x W, W [in, out].
Matrix linear(const Parameters& parameters, const Weight& weight, const Matrix& x);

/// dW += x^T dy; dx += dy W^T.
void linear_backward(Parameters& parameters, const Weight& weight, const Matrix& x, const Matrix& dy, Matrix& dx);

}  // namespace language_model
