#include "examples/model/transformer.hpp"

#include <cmath>
#include <numeric>

#include "examples/model/cross_entropy.hpp"
#include "examples/model/linear.hpp"

namespace model {

Transformer::Transformer(Parameters& parameters, const AttentionKind& kind, int layers, std::int64_t width,
                         const cpnsa::Partition& partition, cpnsa::Communicator& communicator, const Place& place)
    : parameters_(parameters),
      rope_(partition.global_rows(communicator.rank()), kind.config.head_dim_qk),
      embedding_(parameters, width),
      norm_(parameters, width),
      head_(parameters.add_normal(width, byte_values, 0.02)) {
  const std::int64_t hidden = 3 * width;
  const auto out_deviation = [&](std::int64_t inputs) {
    return 1.0 / std::sqrt(2.0 * layers * static_cast<double>(inputs));  // the sum over the layers stays of order 1
  };
  for (int i = 0; i < layers; ++i) {
    layers_.push_back(std::unique_ptr<Layer>(
        new Layer{RmsNorm(parameters, width),
                  SelfAttention(parameters, kind, width, out_deviation(width), rope_, partition, communicator, place),
                  RmsNorm(parameters, width), GatedMlp(parameters, width, hidden, out_deviation(hidden))}));
  }
}

double Transformer::forward_backward(std::span<const std::uint8_t> bytes, std::span<const std::uint8_t> targets,
                                     double scale) {
  Matrix x = embedding_.forward(bytes);
  for (auto& layer : layers_) {
    add(x, layer->attention.forward(layer->attention_norm.forward(x)));
    add(x, layer->mlp.forward(layer->mlp_norm.forward(x)));
  }
  const Matrix normed = norm_.forward(x);
  Matrix logits = linear(parameters_, head_, normed);
  const double loss = cross_entropy(logits, targets, scale);

  Matrix dnormed(x.rows, x.columns);
  linear_backward(parameters_, head_, normed, logits, dnormed);
  Matrix dx(x.rows, x.columns);
  norm_.backward(dnormed, dx);
  for (auto layer = layers_.rbegin(); layer != layers_.rend(); ++layer) {
    Matrix dmlp(x.rows, x.columns);
    (*layer)->mlp.backward(dx, dmlp);
    (*layer)->mlp_norm.backward(dmlp, dx);
    Matrix dattention(x.rows, x.columns);
    (*layer)->attention.backward(dx, dattention);
    (*layer)->attention_norm.backward(dattention, dx);
  }
  embedding_.backward(bytes, dx);
  return loss;
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
