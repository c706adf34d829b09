#pragma once

#include "examples/model/matrix.hpp"
#include "examples/model/parameters.hpp"

namespace model {

/// y = x / sqrt(mean(x^2) + epsilon) * gain, a token at a time.
class RmsNorm {
 public:
  RmsNorm(Parameters& parameters, std::int64_t width);

  Matrix forward(const Matrix& x);
  void backward(const Matrix& dy, Matrix& dx);  ///< dx += ...

 private:
  Parameters& parameters_;
  Weight gain_;
  Matrix x_;
  std::vector<double> inverse_;  // 1 / root mean square of each token
};

}  // namespace model
