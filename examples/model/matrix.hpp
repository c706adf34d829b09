#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace model {

/// Row-major matrix; a row is a token. The model computes in float64: rounding decides near-ties between blocks, and
/// training amplifies what follows. In float32 the curves of different rank counts part after a hundred steps.
struct Matrix {
  Matrix() = default;
  Matrix(std::int64_t row_count, std::int64_t column_count)
      : rows(row_count), columns(column_count), values(static_cast<std::size_t>(row_count * column_count)) {}

  double* row(std::int64_t index) { return values.data() + index * columns; }
  const double* row(std::int64_t index) const { return values.data() + index * columns; }

  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::vector<double> values;
};

/// destination += source, of the same shape.
inline void add(Matrix& destination, const Matrix& source) {
  for (std::size_t i = 0; i < destination.values.size(); ++i) destination.values[i] += source.values[i];
}

}  // namespace model
