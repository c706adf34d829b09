#include "model/linear.hpp"

#include <Eigen/Core>
#include <algorithm>

namespace language_model {
namespace {

using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using RowMajorDouble = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Map = Eigen::Map<RowMajor>;
using ConstMap = Eigen::Map<const RowMajor>;

}  // namespace

Matrix linear(const Parameters& parameters, const Weight& weight, const Matrix& x, std::int64_t chunk) {
  Matrix y(x.rows, weight.columns);
  const ConstMap w(parameters.value(weight), weight.rows, weight.columns);
  for (std::int64_t row = 0; row < x.rows; row += chunk) {
    const std::int64_t rows = std::min(chunk, x.rows - row);
    Map(y.row(row), rows, y.columns).noalias() = ConstMap(x.row(row), rows, x.columns) * w;
  }
  return y;
}

void linear_backward(Parameters& parameters, const Weight& weight, const Matrix& x, const Matrix& dy, Matrix& dx,
                     std::int64_t chunk) {
  const ConstMap w(parameters.value(weight), weight.rows, weight.columns);
  Eigen::Map<RowMajorDouble> dw(parameters.gradient(weight), weight.rows, weight.columns);
  RowMajor part(weight.rows, weight.columns);
  for (std::int64_t row = 0; row < x.rows; row += chunk) {
    const std::int64_t rows = std::min(chunk, x.rows - row);
    const ConstMap dy_rows(dy.row(row), rows, dy.columns);
    part.noalias() = ConstMap(x.row(row), rows, x.columns).transpose() * dy_rows;
    dw += part.cast<double>();
    Map(dx.row(row), rows, dx.columns).noalias() += dy_rows * w.transpose();
  }
}

}  // namespace language_model
