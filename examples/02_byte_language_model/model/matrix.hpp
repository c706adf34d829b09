#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace language_model {

/// Row-major float32 matrix; a row is a token.
struct Matrix {
  Matrix() = default;
  Matrix(std::int64_t row_count, std::int64_t column_count)
      : rows(row_count), columns(column_count), values(static_cast<std::size_t>(row_count * column_count)) {}

  float* row(std::int64_t index) { return values.data() + index * columns; }
  const float* row(std::int64_t index) const { return values.data() + index * columns; }

  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::vector<float> values;
};

/// destination += source, of the same shape.
inline void add(Matrix& destination, const Matrix& source) {
  for (std::size_t i = 0; i < destination.values.size(); ++i) destination.values[i] += source.values[i];
}

}  // namespace language_model
