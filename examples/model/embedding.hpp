#pragma once

#include <cstdint>

#include "examples/model/parameters.hpp"

namespace model {

/// Maps each token to a row of a table.
class Embedding {
 public:
  Embedding(Parameters& parameters, std::int64_t vocabulary, std::int64_t width);

  Tensor forward(TokenView tokens) const;  ///< [tokens, width], wide
  void backward(TokenView tokens, const TensorView& dx);

 private:
  Parameters& parameters_;
  Weight table_;
};

}  // namespace model
