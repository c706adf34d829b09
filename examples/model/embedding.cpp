#include "examples/model/embedding.hpp"

#include <algorithm>

namespace model {

Embedding::Embedding(Parameters& parameters, std::int64_t width)
    : parameters_(parameters), table_(parameters.add_normal(byte_values, width, 1.0)) {}

Matrix Embedding::forward(std::span<const std::uint8_t> bytes) const {
  Matrix x(static_cast<std::int64_t>(bytes.size()), table_.columns);
  for (std::int64_t row = 0; row < x.rows; ++row)
    std::copy_n(parameters_.value(table_) + bytes[static_cast<std::size_t>(row)] * x.columns, x.columns, x.row(row));
  return x;
}

void Embedding::backward(std::span<const std::uint8_t> bytes, const Matrix& dx) {
  for (std::int64_t row = 0; row < dx.rows; ++row) {
    double* gradient = parameters_.gradient(table_) + bytes[static_cast<std::size_t>(row)] * dx.columns;
    for (std::int64_t c = 0; c < dx.columns; ++c) gradient[c] += dx.row(row)[c];
  }
}

}  // namespace model
