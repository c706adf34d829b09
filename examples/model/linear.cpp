#include "examples/model/linear.hpp"

#include <Eigen/Core>

namespace model {
namespace {

using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Map = Eigen::Map<RowMajor>;
using ConstMap = Eigen::Map<const RowMajor>;

Map map(Matrix& matrix) {
  return Map(matrix.values.data(), matrix.rows, matrix.columns);
}

ConstMap map(const Matrix& matrix) {
  return ConstMap(matrix.values.data(), matrix.rows, matrix.columns);
}

}  // namespace

Matrix linear(const Parameters& parameters, const Weight& weight, const Matrix& x) {
  Matrix y(x.rows, weight.columns);
  map(y).noalias() = map(x) * ConstMap(parameters.value(weight), weight.rows, weight.columns);
  return y;
}

void linear_backward(Parameters& parameters, const Weight& weight, const Matrix& x, const Matrix& dy, Matrix& dx) {
  const ConstMap w(parameters.value(weight), weight.rows, weight.columns);
  Map dw(parameters.gradient(weight), weight.rows, weight.columns);
  dw.noalias() += map(x).transpose() * map(dy);
  map(dx).noalias() += map(dy) * w.transpose();
}

}  // namespace model
