#include "retriever.hpp"

#include <cmath>

#include "examples/model/linear.hpp"

namespace needle {

using model::Into;
using model::Operations;
using model::Tensor;
using model::Tokens;
using model::TokenView;
using model::Transposed;

namespace {

constexpr double embedding_deviation = 0.3;  // of E, also the output matrix: the first logits are of order 1

double deviation_for(std::int64_t inputs) {
  return 1.0 / std::sqrt(static_cast<double>(inputs));
}

std::vector<std::int64_t> all_at_0(const cpnsa::Partition& partition, int rank) {
  return std::vector<std::int64_t>(static_cast<std::size_t>(partition.local_tokens(rank)), 0);
}

}  // namespace

Retriever::Retriever(model::Parameters& parameters, const model::AttentionKind& kind, std::int64_t width,
                     std::int64_t vocabulary, const cpnsa::Partition& partition, cpnsa::Communicator& communicator)
    : parameters_(parameters),
      nowhere_(parameters.operations(), all_at_0(partition, communicator.rank()), kind.config.head_dim_qk),
      workspace_(parameters.operations()),
      table_(parameters.add_normal(vocabulary, width, embedding_deviation)),
      shift_(parameters.add_normal(width, width, deviation_for(width))),
      norm_(parameters, width),
      attention_(parameters, kind, width, deviation_for(2 * width), nowhere_, partition, communicator, workspace_),
      last_norm_(parameters, width) {
  parameters.upload();
}

Tensor Retriever::logits(TokenView tokens, TokenView previous) {
  Operations& operations = parameters_.operations();
  const Tensor x(operations, operations.wide(), {tokens.count, table_.columns});
  operations.look_up(x, parameters_.value(table_), previous);
  shifted_ = model::narrowed(operations, x);
  operations.look_up(x, parameters_.value(table_), tokens);
  model::add_linear(x, parameters_, shift_, shifted_);
  attention_.forward(norm_.forward(x), x);
  normed_ = last_norm_.forward(x);
  Tensor logits(operations, operations.wide(), {tokens.count, table_.rows});
  operations.product(logits, normed_, parameters_.rounded(table_), Transposed::b, Into::set);
  return logits;
}

double Retriever::forward_backward(const Rows& rows, std::span<const std::int32_t> target_values, double scale) {
  Operations& operations = parameters_.operations();
  const Tokens tokens(operations, rows.tokens), previous(operations, rows.previous), targets(operations, target_values);
  const std::int64_t count = static_cast<std::int64_t>(rows.tokens.size()), width = table_.columns;
  const model::TensorView all = parameters_.gradients();
  operations.device().fill_zero(all.data, all.bytes(), operations.stream());

  const Tensor dlogits(operations, operations.narrow(), {count, table_.rows});
  const double loss = operations.cross_entropy(dlogits, logits(tokens, previous), targets, scale);

  operations.product(parameters_.gradient(table_), dlogits, normed_, Transposed::a, Into::add);
  const Tensor dnormed(operations, operations.wide(), {count, width});
  operations.product(dnormed, dlogits, parameters_.rounded(table_), Transposed::none, Into::set);
  const Tensor dx = model::zeros(operations, operations.wide(), {count, width});
  last_norm_.backward(dnormed, dx);
  norm_.backward(attention_.backward(model::narrowed(operations, dx)), dx);

  const Tensor dprevious(operations, operations.wide(), {count, width});
  model::linear_backward(parameters_, shift_, shifted_, model::narrowed(operations, dx), dprevious, Into::set);
  operations.look_up_backward(parameters_.gradient(table_), dx, tokens);
  operations.look_up_backward(parameters_.gradient(table_), dprevious, previous);
  return loss;
}

std::vector<std::int32_t> Retriever::predict(const Rows& rows) {
  Operations& operations = parameters_.operations();
  const Tokens tokens(operations, rows.tokens), previous(operations, rows.previous);
  const Tensor all = logits(tokens, previous);
  const Tokens best(operations, all.rows());
  operations.argmax(best, all);
  return best.read(operations);
}

}  // namespace needle
