#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "examples/model/matrix.hpp"

namespace model {

/// Rotary position embedding: turns each pair of channels of a head by an angle that grows with the token's position.
class Rope {
 public:
  /// `positions` of this rank's rows in the sequence; `dim` is a head's, even.
  Rope(std::span<const std::int64_t> positions, std::int64_t dim);

  void rotate(Matrix& x) const;       ///< x [rows, heads * dim], in place
  void rotate_back(Matrix& x) const;  ///< the inverse, which is also the backward

 private:
  void turn(Matrix& x, double direction) const;

  std::int64_t half_;
  std::vector<double> cosine_, sine_;  // [rows, dim / 2]
};

}  // namespace model
