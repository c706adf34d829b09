#pragma once

#include <cmath>

#include "cpnsa/config.hpp"
#include "kernels/cpu/gate.hpp"

namespace cpnsa::cpu {

/// The value and the derivative of an activation at one point.
template <class A>
struct ActivationAt {
  A value;
  A slope;
};

/// The activation at z; NaN stays NaN. gelu is the tanh form.
template <class A>
ActivationAt<A> activate(Activation activation, A z) {
  switch (activation) {
    case Activation::relu: return {z < A{0} ? A{0} : z, z > A{0} ? A{1} : z == z ? A{0} : z};
    case Activation::gelu: {
      constexpr A sqrt_2_over_pi = A(0.79788456080286535588), cubic = A(0.044715);
      const A t = std::tanh(sqrt_2_over_pi * (z + cubic * z * z * z));
      const A inner_slope = sqrt_2_over_pi * (A{1} + A{3} * cubic * z * z);
      return {A(0.5) * z * (A{1} + t), A(0.5) * (A{1} + t) + A(0.5) * z * (A{1} - t * t) * inner_slope};
    }
    case Activation::silu: break;
  }
  const A s = sigmoid(z);
  return {z * s, s * (A{1} + z * (A{1} - s))};
}

}  // namespace cpnsa::cpu
