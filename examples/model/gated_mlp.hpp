#pragma once

#include "examples/model/parameters.hpp"

namespace model {

/// The gated MLP (silu(x W_gate) * (x W_up)) W_down.
class GatedMlp {
 public:
  GatedMlp(Parameters& parameters, std::int64_t width, std::int64_t hidden, double out_deviation);

  void forward(Tensor x, const TensorView& sum);  ///< sum += ...; x is narrow, sum wide
  Tensor backward(const TensorView& dy);          ///< dx, wide; dy is narrow

 private:
  Parameters& parameters_;
  Weight gate_, up_, down_;
  Tensor x_, gated_, raised_, hidden_;
};

}  // namespace model
