#pragma once

#include <cmath>

#include "cpnsa/config.hpp"

namespace cpnsa::cpu {

template <class A>
A sigmoid(A x) {
  return A{1} / (A{1} + std::exp(-x));
}

/// The factor of a branch's output: the gate tensor's element, through the sigmoid if it is a logit.
template <class A>
A gate_value(GateKind kind, A gate) {
  return kind == GateKind::logits ? sigmoid(gate) : gate;
}

/// d gate_value / d gate as a function of gate_value.
template <class A>
A gate_slope(GateKind kind, A value) {
  return kind == GateKind::logits ? value * (A{1} - value) : A{1};
}

}  // namespace cpnsa::cpu
