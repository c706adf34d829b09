#include "examples/model/self_attention.hpp"

#include <cmath>

#include "examples/model/linear.hpp"

namespace model {

SelfAttention::SelfAttention(Parameters& parameters, const AttentionKind& kind, std::int64_t width,
                             double out_deviation, const Rope& rope, const cpnsa::Partition& partition,
                             cpnsa::Communicator& communicator, const Place& place)
    : parameters_(parameters), kind_(kind), rope_(rope), attention_(parameters, kind, partition, communicator, place) {
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

Matrix SelfAttention::forward(const Matrix& x) {
  x_ = x;
  AttentionMatrices inputs;
  inputs.q = linear(parameters_, q_, x);
  rope_.rotate(inputs.q);
  for (std::size_t pair = 0; pair < k_.size(); ++pair) {
    inputs.k.push_back(linear(parameters_, k_[pair], x));
    rope_.rotate(inputs.k.back());
    inputs.v.push_back(linear(parameters_, v_[pair], x));
  }
  if (kind_.gated) {
    inputs.gate = linear(parameters_, gate_, x);
  } else {
    inputs.gate = Matrix(x.rows, kind_.config.num_q_heads * 3);
    for (std::size_t i = 2; i < inputs.gate.values.size(); i += 3) inputs.gate.values[i] = 1.0;
  }
  attended_ = attention_.forward(inputs);
  return linear(parameters_, out_, attended_);
}

void SelfAttention::backward(const Matrix& dy, Matrix& dx) {
  Matrix dattended(attended_.rows, attended_.columns);
  linear_backward(parameters_, out_, attended_, dy, dattended);
  AttentionMatrices gradients = attention_.backward(dattended);
  rope_.rotate_back(gradients.q);
  linear_backward(parameters_, q_, x_, gradients.q, dx);
  for (std::size_t pair = 0; pair < k_.size(); ++pair) {
    rope_.rotate_back(gradients.k[pair]);
    linear_backward(parameters_, k_[pair], x_, gradients.k[pair], dx);
    linear_backward(parameters_, v_[pair], x_, gradients.v[pair], dx);
  }
  if (kind_.gated) linear_backward(parameters_, gate_, x_, gradients.gate, dx);
}

}  // namespace model
