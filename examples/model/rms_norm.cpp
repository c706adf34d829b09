#include "examples/model/rms_norm.hpp"

#include <cmath>

namespace model {

RmsNorm::RmsNorm(Parameters& parameters, std::int64_t width)
    : parameters_(parameters), gain_(parameters.add_constant(1, width, 1.0)) {}

Matrix RmsNorm::forward(const Matrix& x) {
  constexpr double epsilon = 1e-5;
  const double* gain = parameters_.value(gain_);
  x_ = x;
  inverse_.resize(static_cast<std::size_t>(x.rows));
  Matrix y(x.rows, x.columns);
  for (std::int64_t row = 0; row < x.rows; ++row) {
    const double* in = x.row(row);
    double squares = 0;
    for (std::int64_t c = 0; c < x.columns; ++c) squares += in[c] * in[c];
    const double inverse = 1.0 / std::sqrt(squares / static_cast<double>(x.columns) + epsilon);
    inverse_[static_cast<std::size_t>(row)] = inverse;
    for (std::int64_t c = 0; c < x.columns; ++c) y.row(row)[c] = in[c] * inverse * gain[c];
  }
  return y;
}

void RmsNorm::backward(const Matrix& dy, Matrix& dx) {
  const double* gain = parameters_.value(gain_);
  double* dgain = parameters_.gradient(gain_);
  for (std::int64_t row = 0; row < dy.rows; ++row) {
    const double* in = x_.row(row);
    const double* dout = dy.row(row);
    const double inverse = inverse_[static_cast<std::size_t>(row)];
    double along = 0;  // sum of dy gain x, the part of the gradient along x
    for (std::int64_t c = 0; c < dy.columns; ++c) {
      dgain[c] += dout[c] * in[c] * inverse;
      along += dout[c] * gain[c] * in[c];
    }
    const double scale = along * inverse * inverse * inverse / static_cast<double>(dy.columns);
    for (std::int64_t c = 0; c < dy.columns; ++c) dx.row(row)[c] += dout[c] * gain[c] * inverse - in[c] * scale;
  }
}

}  // namespace model
