#pragma once

#include <cstdint>
#include <span>

#include "examples/model/matrix.hpp"
#include "examples/model/parameters.hpp"

namespace model {

inline constexpr std::int64_t byte_values = 256;

/// A row of a table for each byte.
class Embedding {
 public:
  Embedding(Parameters& parameters, std::int64_t width);

  Matrix forward(std::span<const std::uint8_t> bytes) const;
  void backward(std::span<const std::uint8_t> bytes, const Matrix& dx);

 private:
  Parameters& parameters_;
  Weight table_;
};

}  // namespace model
