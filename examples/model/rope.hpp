#pragma once

#include <cstdint>
#include <span>

#include "examples/model/tensor.hpp"

namespace model {

/// Rotary position embedding: rotates each pair of channels of a head by an angle proportional to the token's position.
class Rope {
 public:
  /// `positions` are those of this rank's rows in the sequence; `dim` is the head dimension, even.
  Rope(Operations& operations, std::span<const std::int64_t> positions, std::int64_t dim);

  void rotate(const TensorView& x) const;       ///< x [rows, heads * dim] narrow, in place
  void rotate_back(const TensorView& x) const;  ///< the inverse, which is also the backward

 private:
  Operations& operations_;
  Tensor cosine_, sine_;  // [rows, dim / 2]
};

}  // namespace model
