#pragma once

#include "model/matrix.hpp"
#include "model/parameters.hpp"

namespace language_model {

/// The model's matrix products, all of them. Tokens are taken `chunk` at a time: with the selection block as the chunk,
/// which no rank boundary cuts, a token's result has the same bits whichever rank computes it.

/// x W, W [in, out].
Matrix linear(const Parameters& parameters, const Weight& weight, const Matrix& x, std::int64_t chunk);

/// dW += x^T dy; dx += dy W^T.
void linear_backward(Parameters& parameters, const Weight& weight, const Matrix& x, const Matrix& dy, Matrix& dx,
                     std::int64_t chunk);

}  // namespace language_model
