#include "examples/model/self_attention.hpp"

#include <cmath>

#include "examples/model/linear.hpp"

namespace model {

SelfAttention::SelfAttention(Parameters& parameters, const AttentionKind& kind, std::int64_t width,
                             double out_deviation, const Rope& rope, const cpnsa::Partition& partition,
                             cpnsa::Communicator& communicator, Workspace& workspace)
    : parameters_(parameters),
      kind_(kind),
      rope_(rope),
      attention_(parameters, kind, partition, communicator, workspace) {
  const cpnsa::Config& config = kind.config;
  const double deviation = 1.0 / std::sqrt(static_cast<double>(width));
  q_ = parameters.add_normal(width, config.num_q_heads * config.head_dim_qk, deviation);
  for (int pair = 0; pair < kind.key_value_pairs; ++pair) {
    k_.push_back(parameters.add_normal(width, config.num_kv_heads * config.head_dim_qk, deviation));
    v_.push_back(parameters.add_normal(width, config.num_kv_heads * config.head_dim_v, deviation));
  }
  if (kind.gated) gate_ = parameters.add_normal(width, config.num_q_heads * 3, deviation);
  out_ = parameters.add_normal(config.num_q_heads * config.head_dim_v, width, out_deviation);
}

// If the model has no gates, that of the window branch is 1 and the others are 0.
Tensor SelfAttention::gates(const TensorView& x) const {
  Operations& operations = parameters_.operations();
  if (kind_.gated) return linear(parameters_, gate_, x, operations.narrow());
  const std::int64_t rows = x.shape[0], columns = kind_.config.num_q_heads * 3;
  std::vector<double> values(static_cast<std::size_t>(rows * columns));
  for (std::size_t i = 2; i < values.size(); i += 3) values[i] = 1.0;
  const Tensor wide(operations, operations.wide(), {rows, columns});
  write(operations, wide, values);
  return narrowed(operations, wide);
}

AttentionTensors SelfAttention::project(const TensorView& x, const Rope& rope) const {
  const DType narrow = parameters_.operations().narrow();
  AttentionTensors inputs;
  inputs.q = linear(parameters_, q_, x, narrow);
  rope.rotate(inputs.q);
  for (std::size_t pair = 0; pair < k_.size(); ++pair) {
    inputs.k.push_back(linear(parameters_, k_[pair], x, narrow));
    rope.rotate(inputs.k.back());
    inputs.v.push_back(linear(parameters_, v_[pair], x, narrow));
  }
  inputs.gate = gates(x);
  return inputs;
}

void SelfAttention::forward(Tensor x, const TensorView& sum) {
  x_ = std::move(x);
  add_linear(sum, parameters_, out_, attention_.forward(project(x_, rope_)));
}

void SelfAttention::append(const TensorView& x, const TensorView& sum, const Rope& rope, DecodingCache& cache,
                           int layer) const {
  add_linear(sum, parameters_, out_, attention_.step(project(x, rope), cache, layer));
}

Tensor SelfAttention::backward(const TensorView& dy) {
  Operations& operations = parameters_.operations();
  const Tensor& attended = attention_.out();
  const Tensor dattended(operations, operations.narrow(), {attended.rows(), attended.columns()});
  linear_backward(parameters_, out_, attended, dy, dattended, Into::set);
  const AttentionTensors gradients = attention_.backward(dattended);

  Tensor dx(operations, operations.wide(), {x_.rows(), x_.columns()});
  rope_.rotate_back(gradients.q);
  linear_backward(parameters_, q_, x_, gradients.q, dx, Into::set);
  for (std::size_t pair = 0; pair < k_.size(); ++pair) {
    rope_.rotate_back(gradients.k[pair]);
    linear_backward(parameters_, k_[pair], x_, gradients.k[pair], dx, Into::add);
    linear_backward(parameters_, v_[pair], x_, gradients.v[pair], dx, Into::add);
  }
  if (kind_.gated) linear_backward(parameters_, gate_, x_, gradients.gate, dx, Into::add);
  return dx;
}

}  // namespace model
