#include <cmath>

#include "examples/model/cpu/operations.hpp"

namespace model {

void CpuOperations::gated(const TensorView& hidden, const TensorView& gate, const TensorView& up) {
  with_type(narrow(), [&](auto zero) {
    using Real = decltype(zero);
    const Real *gates = row<Real>(gate, 0), *ups = row<Real>(up, 0);
    for (std::int64_t i = 0; i < hidden.elements(); ++i)
      row<Real>(hidden, 0)[i] = gates[i] / (1 + std::exp(-gates[i])) * ups[i];
  });
}

void CpuOperations::gated_backward(const TensorView& dgate, const TensorView& dup, const TensorView& dhidden,
                                   const TensorView& gate, const TensorView& up) {
  with_type(narrow(), [&](auto zero) {
    using Real = decltype(zero);
    const Real *gates = row<Real>(gate, 0), *ups = row<Real>(up, 0), *dout = row<Real>(dhidden, 0);
    for (std::int64_t i = 0; i < dhidden.elements(); ++i) {
      const Real sigmoid = 1 / (1 + std::exp(-gates[i]));
      row<Real>(dup, 0)[i] = dout[i] * gates[i] * sigmoid;
      row<Real>(dgate, 0)[i] = dout[i] * ups[i] * sigmoid * (1 + gates[i] * (1 - sigmoid));
    }
  });
}

}  // namespace model
