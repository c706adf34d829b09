#pragma once

#include "examples/model/matrix.hpp"
#include "examples/model/parameters.hpp"

namespace model {

/// (silu(x W_gate) * (x W_up)) W_down.
class GatedMlp {
 public:
  GatedMlp(Parameters& parameters, std::int64_t width, std::int64_t hidden, double out_deviation);

  Matrix forward(const Matrix& x);
  void backward(const Matrix& dy, Matrix& dx);  ///< dx += ...

 private:
  Parameters& parameters_;
  Weight gate_, up_, down_;
  Matrix x_, gated_, sigmoid_, raised_, hidden_;
};

}  // namespace model
