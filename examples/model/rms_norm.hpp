#pragma once

#include "examples/model/parameters.hpp"

namespace model {

/// RMS normalization: y = x / sqrt(mean(x^2) + epsilon) * gain for each token.
class RmsNorm {
 public:
  RmsNorm(Parameters& parameters, std::int64_t width);

  Tensor forward(const TensorView& x);                        ///< x is wide, the result narrow
  void backward(const TensorView& dy, const TensorView& dx);  ///< dx += ...; both wide

 private:
  Parameters& parameters_;
  Weight gain_;
  Tensor x_, inverse_;  // inverse: 1 / root mean square of each token
};

}  // namespace model
