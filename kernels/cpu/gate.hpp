#pragma once

#include <cmath>

#include "cpnsa/config.hpp"

namespace cpnsa::cpu {

template <class A>
A sigmoid(A x) {
  return A{1} / (A{1} + std::exp(-x));
}

/// The gate applied.
template <class A>
A gate_value(GateKind kind, A gate) {
  return kind == GateKind::logits ? sigmoid(gate) : gate;
}

/// d gate_value / d gate, from the value.
template <class A>
A gate_slope(GateKind kind, A value) {
  return kind == GateKind::logits ? value * (A{1} - value) : A{1};
}

}  // namespace cpnsa::cpu
