#include <cmath>

#include "examples/model/cpu/operations.hpp"

namespace model {

void CpuOperations::rms_norm(const TensorView& y, const TensorView& inverse, const TensorView& x,
                             const TensorView& gain) {
  with_type(wide(), [&](auto zero) {
    using Real = decltype(zero);
    const std::int64_t columns = x.shape[1];
    const Real* gains = row<Real>(gain, 0);
    for (std::int64_t i = 0; i < x.shape[0]; ++i) {
      const Real* in = row<Real>(x, i);
      Real squares = 0;
      for (std::int64_t c = 0; c < columns; ++c) squares += in[c] * in[c];
      const Real scale = 1 / std::sqrt(squares / static_cast<Real>(columns) + static_cast<Real>(rms_norm_epsilon));
      static_cast<Real*>(inverse.data)[i] = scale;
      for (std::int64_t c = 0; c < columns; ++c) row<Real>(y, i)[c] = in[c] * scale * gains[c];
    }
  });
}

void CpuOperations::rms_norm_backward(const TensorView& dx, const TensorView& dgain, const TensorView& dy,
                                      const TensorView& x, const TensorView& inverse, const TensorView& gain) {
  with_type(wide(), [&](auto zero) {
    using Real = decltype(zero);
    const std::int64_t columns = x.shape[1];
    const Real* gains = row<Real>(gain, 0);
    Real* dgains = row<Real>(dgain, 0);
    for (std::int64_t i = 0; i < x.shape[0]; ++i) {
      const Real* in = row<Real>(x, i);
      const Real* dout = row<Real>(dy, i);
      const Real scale = static_cast<const Real*>(inverse.data)[i];
      Real along = 0;  // sum of dy gain x, the part of the gradient along x
      for (std::int64_t c = 0; c < columns; ++c) {
        dgains[c] += dout[c] * in[c] * scale;
        along += dout[c] * gains[c] * in[c];
      }
      const Real factor = along * scale * scale * scale / static_cast<Real>(columns);
      for (std::int64_t c = 0; c < columns; ++c) row<Real>(dx, i)[c] += dout[c] * gains[c] * scale - in[c] * factor;
    }
  });
}

}  // namespace model
