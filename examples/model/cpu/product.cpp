#include <Eigen/Core>

#include "examples/model/cpu/operations.hpp"

namespace model {
namespace {

template <class Real>
using RowMajor = Eigen::Matrix<Real, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

template <class Real>
Eigen::Map<RowMajor<Real>> map(const TensorView& view) {
  return {static_cast<Real*>(view.data), view.shape[0], view.shape[1]};
}

}  // namespace

void CpuOperations::product(const TensorView& c, const TensorView& a, const TensorView& b, Transposed transposed,
                            Into into) {
  with_type(wide(), [&](auto zero) {
    using Real = decltype(zero);
    auto result = map<Real>(c);
    if (into == Into::set) result.setZero();
    switch (transposed) {
      case Transposed::none: result.noalias() += map<Real>(a) * map<Real>(b); break;
      case Transposed::a: result.noalias() += map<Real>(a).transpose() * map<Real>(b); break;
      case Transposed::b: result.noalias() += map<Real>(a) * map<Real>(b).transpose(); break;
    }
  });
}

}  // namespace model
