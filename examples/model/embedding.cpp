#include "examples/model/embedding.hpp"

namespace model {

Embedding::Embedding(Parameters& parameters, std::int64_t vocabulary, std::int64_t width)
    : parameters_(parameters), table_(parameters.add_normal(vocabulary, width, 1.0)) {}

Tensor Embedding::forward(TokenView tokens) const {
  Operations& operations = parameters_.operations();
  Tensor x(operations, operations.wide(), {tokens.count, table_.columns});
  operations.look_up(x, parameters_.value(table_), tokens);
  return x;
}

void Embedding::backward(TokenView tokens, const TensorView& dx) {
  parameters_.operations().look_up_backward(parameters_.gradient(table_), dx, tokens);
}

}  // namespace model
