#include "examples/model/transformer.hpp"

#include <cmath>
#include <numeric>

#include "examples/model/linear.hpp"

namespace model {

Transformer::Transformer(Parameters& parameters, const AttentionKind& kind, const TransformerSize& size,
                         const cpnsa::Partition& partition, cpnsa::Communicator& communicator)
    : parameters_(parameters),
      head_dim_(kind.config.head_dim_qk),
      rope_(parameters.operations(), partition.global_rows(communicator.rank()), kind.config.head_dim_qk),
      workspace_(parameters.operations()),
      embedding_(parameters, size.vocabulary, size.width),
      norm_(parameters, size.width),
      head_(parameters.add_normal(size.width, size.vocabulary, 0.02)) {
  const std::int64_t hidden = 3 * size.width;
  const auto out_deviation = [&](std::int64_t inputs) {
    return 1.0 / std::sqrt(2.0 * size.layers * static_cast<double>(inputs));  // the sum over the layers is of order 1
  };
  for (int i = 0; i < size.layers; ++i) {
    layers_.push_back(std::unique_ptr<Layer>(
        new Layer{RmsNorm(parameters, size.width),
                  SelfAttention(parameters, kind, size.width, out_deviation(size.width), rope_, partition, communicator,
                                workspace_),
                  RmsNorm(parameters, size.width), GatedMlp(parameters, size.width, hidden, out_deviation(hidden))}));
  }
  parameters.upload();
}

Tensor Transformer::forward(TokenView tokens) {
  const Tensor x = embedding_.forward(tokens);
  for (auto& layer : layers_) {
    layer->attention.forward(layer->attention_norm.forward(x), x);
    layer->mlp.forward(layer->mlp_norm.forward(x), x);
  }
  return norm_.forward(x);
}

double Transformer::forward_backward(std::span<const std::int32_t> token_values,
                                     std::span<const std::int32_t> target_values, double scale) {
  Operations& operations = parameters_.operations();
  const TensorView& gradients = parameters_.gradients();
  operations.device().fill_zero(gradients.data, gradients.bytes(), operations.stream());
  const Tokens tokens(operations, token_values), targets(operations, target_values);

  const Tensor normed = forward(tokens);
  const std::int64_t rows = normed.rows(), width = normed.columns();
  Tensor dnormed(operations, operations.wide(), {rows, width});
  double loss = 0;
  {
    const Tensor logits = linear(parameters_, head_, normed, operations.wide());
    const Tensor dlogits(operations, operations.narrow(), {rows, logits.columns()});
    loss = operations.cross_entropy(dlogits, logits, targets, scale);
    linear_backward(parameters_, head_, normed, dlogits, dnormed, Into::set);
  }
  const Tensor dx = zeros(operations, operations.wide(), {rows, width});
  norm_.backward(dnormed, dx);
  for (auto layer = layers_.rbegin(); layer != layers_.rend(); ++layer) {
    (*layer)->mlp_norm.backward((*layer)->mlp.backward(narrowed(operations, dx)), dx);
    (*layer)->attention_norm.backward((*layer)->attention.backward(narrowed(operations, dx)), dx);
  }
  embedding_.backward(tokens, dx);
  return loss;
}

std::int32_t Transformer::append(std::span<const std::int32_t> token_values, DecodingCache& cache) {
  Operations& operations = parameters_.operations();
  const auto count = static_cast<std::int64_t>(token_values.size());
  std::vector<std::int64_t> positions(token_values.size());
  std::iota(positions.begin(), positions.end(), cache.length());
  const Rope rope(operations, positions, head_dim_);
  cache.prepare(count);
  const Tokens tokens(operations, token_values);
  const Tensor x = embedding_.forward(tokens);
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    Layer& layer = *layers_[i];
    layer.attention.append(layer.attention_norm.forward(x), x, rope, cache, static_cast<int>(i));
    layer.mlp.forward(layer.mlp_norm.forward(x), x);
  }
  cache.end_step();
  const Tensor normed = norm_.forward(x);
  const std::size_t row_bytes = normed.view().bytes() / token_values.size();
  const TensorView last(static_cast<char*>(normed.view().data) + (token_values.size() - 1) * row_bytes,
                        normed.view().dtype, {1, normed.columns()});
  const Tensor logits = linear(parameters_, head_, last, operations.wide());
  const Tokens best(operations, 1);
  operations.argmax(best, logits);
  return best.read(operations).front();
}

std::vector<std::int32_t> Transformer::predict(std::span<const std::int32_t> token_values) {
  Operations& operations = parameters_.operations();
  const Tokens tokens(operations, token_values);
  const Tensor logits = linear(parameters_, head_, forward(tokens), operations.wide());
  const Tokens best(operations, logits.rows());
  operations.argmax(best, logits);
  return best.read(operations);
}

std::int64_t Transformer::bytes_received() {
  std::int64_t sum = 0;
  for (auto& layer : layers_) {
    const cpnsa::Statistics statistics = layer->attention.statistics();
    sum = std::accumulate(statistics.bytes_received.begin(), statistics.bytes_received.end(), sum);
  }
  return sum;
}

std::int64_t Transformer::blocks_fetched() {
  std::int64_t sum = 0;
  for (auto& layer : layers_) sum += layer->attention.statistics().blocks_fetched;
  return sum;
}

}  // namespace model
