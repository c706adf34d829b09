#include "examples/model/sharded_attention.hpp"

#include "examples/model/decoding_cache.hpp"

namespace model {

AttentionKind AttentionKind::nsa(std::int64_t num_q_heads, std::int64_t num_kv_heads, std::int64_t head_dim) {
  AttentionKind kind;
  cpnsa::Config& config = kind.config;
  config.num_q_heads = num_q_heads;
  config.num_kv_heads = num_kv_heads;
  config.head_dim_qk = config.head_dim_v = head_dim;
  config.compress_block = 16;
  config.compress_stride = 8;
  config.select_block = 32;
  config.select_count = 6;
  config.window = 64;
  config.compress_hidden_k = config.compress_hidden_v = 2 * head_dim;
  return kind;
}

AttentionKind AttentionKind::full(std::int64_t tokens) const {
  AttentionKind kind = *this;
  cpnsa::Config& config = kind.config;
  config.window = tokens;
  config.gate = cpnsa::GateKind::values;
  // The other two branches are computed too and get weight 0, so they are made as cheap as possible.
  config.compressor = cpnsa::Compressor::mean;
  config.compress_block = config.compress_stride = config.select_block;
  config.select_count = config.local_blocks = 1;
  config.init_blocks = 0;
  kind.key_value_pairs = 1;
  kind.gated = false;
  return kind;
}

ShardedAttention::ShardedAttention(Parameters& parameters, const AttentionKind& kind, const cpnsa::Partition& partition,
                                   cpnsa::Communicator& communicator, Workspace& workspace)
    : kind_(kind),
      operations_(parameters.operations()),
      attention_(kind.config, partition, operations_.device(), communicator, kind.options),
      workspace_(workspace),
      saved_memory_(operations_, attention_.saved_bytes()) {
  workspace.reserve(attention_.workspace_bytes());
  saved_.memory = saved_memory_.data();
  if (kind.config.compressor != cpnsa::Compressor::mlp) return;
  compress_k_ = std::make_unique<Compressor>(parameters, kind.config, kind.config.head_dim_qk,
                                             kind.config.compress_hidden_k, kind.first_summaries);
  compress_v_ = std::make_unique<Compressor>(parameters, kind.config, kind.config.head_dim_v,
                                             kind.config.compress_hidden_v, kind.first_summaries);
}

cpnsa::BranchTensors ShardedAttention::branches(const std::vector<Tensor>& tensors, std::int64_t dim) const {
  const auto view = [&](const Tensor& tensor) {
    return shaped(tensor, {tensor.rows(), kind_.config.num_kv_heads, dim});
  };
  return {view(tensors.front()), view(tensors[tensors.size() / 2]), view(tensors.back())};
}

cpnsa::AttentionInputs ShardedAttention::arguments(const AttentionTensors& inputs) const {
  const cpnsa::Config& config = kind_.config;
  cpnsa::AttentionInputs arguments;
  arguments.q = shaped(inputs.q, {inputs.q.rows(), config.num_q_heads, config.head_dim_qk});
  arguments.k = branches(inputs.k, config.head_dim_qk);
  arguments.v = branches(inputs.v, config.head_dim_v);
  arguments.gate = shaped(inputs.gate, {inputs.q.rows(), config.num_q_heads, 3});
  if (compress_k_) arguments.compress_k = compress_k_->values();
  if (compress_v_) arguments.compress_v = compress_v_->values();
  return arguments;
}

const Tensor& ShardedAttention::forward(AttentionTensors inputs) {
  const cpnsa::Config& config = kind_.config;
  inputs_ = std::move(inputs);
  out_ = Tensor(operations_, operations_.narrow(), {attention_.rows(), config.num_q_heads * config.head_dim_v});
  attention_.forward(arguments(inputs_), shaped(out_, {attention_.rows(), config.num_q_heads, config.head_dim_v}),
                     nullptr, &saved_, workspace_.data(), operations_.stream());
  return out_;
}

Tensor ShardedAttention::step(const AttentionTensors& inputs, DecodingCache& cache, int layer) const {
  Tensor out(operations_, operations_.narrow(), {inputs.q.rows(), kind_.config.num_q_heads * kind_.config.head_dim_v});
  cache.attend(layer, arguments(inputs), out);
  return out;
}

AttentionTensors ShardedAttention::backward(const TensorView& dout) {
  const cpnsa::Config& config = kind_.config;
  const std::int64_t rows = attention_.rows();
  const auto like = [&](const Tensor& tensor) {
    return Tensor(operations_, operations_.narrow(), {tensor.rows(), tensor.columns()});
  };
  AttentionTensors result;
  result.q = like(inputs_.q);
  result.gate = like(inputs_.gate);
  for (const Tensor& k : inputs_.k) result.k.push_back(like(k));
  for (const Tensor& v : inputs_.v) result.v.push_back(like(v));

  cpnsa::AttentionGradients gradients;
  gradients.q = shaped(result.q, {rows, config.num_q_heads, config.head_dim_qk});
  gradients.k = branches(result.k, config.head_dim_qk);
  gradients.v = branches(result.v, config.head_dim_v);
  gradients.gate = shaped(result.gate, {rows, config.num_q_heads, 3});
  if (compress_k_) gradients.compress_k = compress_k_->gradients();
  if (compress_v_) gradients.compress_v = compress_v_->gradients();
  attention_.backward(arguments(inputs_), shaped(dout, {rows, config.num_q_heads, config.head_dim_v}), saved_,
                      gradients, workspace_.data(), operations_.stream());
  return result;
}

}  // namespace model
