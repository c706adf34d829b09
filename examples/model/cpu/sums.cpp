#include "examples/model/cpu/operations.hpp"

namespace model {

double CpuOperations::sum_of_squares(const TensorView& values) {
  return with_type(wide(), [&](auto zero) {
    using Real = decltype(zero);
    double sum = 0;
    for (std::int64_t i = 0; i < values.elements(); ++i) {
      const double value = static_cast<const Real*>(values.data)[i];
      sum += value * value;
    }
    return sum;
  });
}

void CpuOperations::sum_parts(const TensorView& sum, const TensorView& parts) {
  with_type(wide(), [&](auto zero) {
    using Real = decltype(zero);
    for (std::int64_t i = 0; i < sum.elements(); ++i) {
      Real total = row<Real>(parts, 0)[i];
      for (std::int64_t part = 1; part < parts.shape[0]; ++part) total += row<Real>(parts, part)[i];
      static_cast<Real*>(sum.data)[i] = total;
    }
  });
}

}  // namespace model
