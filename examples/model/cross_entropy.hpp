#pragma once

#include <cstdint>
#include <span>

#include "examples/model/matrix.hpp"

namespace model {

/// Sum over the rows of -log softmax(logits)[target], in nats. `logits` is overwritten with the gradient of
/// `scale` times it.
double cross_entropy(Matrix& logits, std::span<const std::uint8_t> targets, double scale);

}  // namespace model
