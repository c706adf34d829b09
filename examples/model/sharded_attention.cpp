#include "examples/model/sharded_attention.hpp"

namespace model {
namespace {

cpnsa::BranchTensors branches_of(const std::vector<std::unique_ptr<DeviceTensor>>& tensors) {
  return {tensors.front()->view(), tensors[tensors.size() / 2]->view(), tensors.back()->view()};
}

Matrix download(const DeviceTensor& tensor, std::int64_t rows) {
  Matrix matrix(rows, rows == 0 ? 0 : tensor.size() / rows);
  tensor.download(matrix.values.data());
  return matrix;
}

}  // namespace

AttentionKind AttentionKind::nsa(std::int64_t heads, std::int64_t kv_heads, std::int64_t head_dim) {
  AttentionKind kind;
  cpnsa::Config& config = kind.config;
  config.num_q_heads = heads;
  config.num_kv_heads = kv_heads;
  config.head_dim_qk = config.head_dim_v = head_dim;
  config.compress_block = 16;
  config.compress_stride = 8;
  config.select_block = 32;
  config.select_count = 6;
  config.window = 64;
  config.compress_hidden_k = config.compress_hidden_v = 2 * head_dim;
  return kind;
}

AttentionKind AttentionKind::full(std::int64_t heads, std::int64_t kv_heads, std::int64_t head_dim,
                                  std::int64_t tokens) {
  AttentionKind kind = nsa(heads, kv_heads, head_dim);
  cpnsa::Config& config = kind.config;
  config.window = tokens;
  config.gate = cpnsa::GateKind::values;
  // The other two branches are computed all the same, and weighed with 0: they are made as cheap as they can be.
  config.compressor = cpnsa::Compressor::mean;
  config.compress_block = config.compress_stride = config.select_block;
  config.select_count = config.local_blocks = 1;
  config.init_blocks = 0;
  kind.key_value_pairs = 1;
  kind.gated = false;
  return kind;
}

ShardedAttention::Tensors::Tensors(const AttentionKind& kind, std::int64_t rows, const Place& place)
    : q(place, {rows, kind.config.num_q_heads, kind.config.head_dim_qk}),
      gate(place, {rows, kind.config.num_q_heads, 3}) {
  for (int pair = 0; pair < kind.key_value_pairs; ++pair) {
    const cpnsa::Config& config = kind.config;
    k.push_back(std::make_unique<DeviceTensor>(
        place, std::initializer_list<std::int64_t>{rows, config.num_kv_heads, config.head_dim_qk}));
    v.push_back(std::make_unique<DeviceTensor>(
        place, std::initializer_list<std::int64_t>{rows, config.num_kv_heads, config.head_dim_v}));
  }
}

cpnsa::BranchTensors ShardedAttention::Tensors::keys() const {
  return branches_of(k);
}

cpnsa::BranchTensors ShardedAttention::Tensors::values() const {
  return branches_of(v);
}

ShardedAttention::ShardedAttention(Parameters& parameters, const AttentionKind& kind, const cpnsa::Partition& partition,
                                   cpnsa::Communicator& communicator, const Place& place)
    : kind_(kind),
      place_(place),
      attention_(kind.config, partition, place.device, communicator, kind.options),
      inputs_(kind, attention_.rows(), place),
      gradients_(kind, attention_.rows(), place),
      out_(place, {attention_.rows(), kind.config.num_q_heads, kind.config.head_dim_v}),
      dout_(place, {attention_.rows(), kind.config.num_q_heads, kind.config.head_dim_v}),
      workspace_(place, attention_.workspace_bytes()),
      saved_memory_(place, attention_.saved_bytes()) {
  saved_.memory = saved_memory_.data();
  arguments_.q = inputs_.q.view();
  arguments_.k = inputs_.keys();
  arguments_.v = inputs_.values();
  arguments_.gate = inputs_.gate.view();
  if (kind.config.compressor != cpnsa::Compressor::mlp) return;
  compress_k_ = std::make_unique<Compressor>(parameters, kind.config, kind.config.head_dim_qk,
                                             kind.config.compress_hidden_k, place);
  compress_v_ = std::make_unique<Compressor>(parameters, kind.config, kind.config.head_dim_v,
                                             kind.config.compress_hidden_v, place);
  arguments_.compress_k = compress_k_->values();
  arguments_.compress_v = compress_v_->values();
}

Matrix ShardedAttention::forward(const AttentionMatrices& inputs) {
  inputs_.q.upload(inputs.q.values.data());
  inputs_.gate.upload(inputs.gate.values.data());
  for (std::size_t pair = 0; pair < inputs_.k.size(); ++pair) {
    inputs_.k[pair]->upload(inputs.k[pair].values.data());
    inputs_.v[pair]->upload(inputs.v[pair].values.data());
  }
  if (compress_k_) {
    compress_k_->upload();
    compress_v_->upload();
  }
  attention_.forward(arguments_, out_.view(), nullptr, &saved_, workspace_.data(), place_.stream);
  return download(out_, attention_.rows());
}

AttentionMatrices ShardedAttention::backward(const Matrix& dout) {
  dout_.upload(dout.values.data());
  cpnsa::AttentionGradients gradients;
  gradients.q = gradients_.q.view();
  gradients.k = gradients_.keys();
  gradients.v = gradients_.values();
  gradients.gate = gradients_.gate.view();
  if (compress_k_) {
    gradients.compress_k = compress_k_->gradients();
    gradients.compress_v = compress_v_->gradients();
  }
  attention_.backward(arguments_, dout_.view(), saved_, gradients, workspace_.data(), place_.stream);
  if (compress_k_) {
    compress_k_->add_gradients();
    compress_v_->add_gradients();
  }

  const std::int64_t rows = attention_.rows();
  AttentionMatrices result;
  result.q = download(gradients_.q, rows);
  result.gate = download(gradients_.gate, rows);
  for (std::size_t pair = 0; pair < gradients_.k.size(); ++pair) {
    result.k.push_back(download(*gradients_.k[pair], rows));
    result.v.push_back(download(*gradients_.v[pair], rows));
  }
  return result;
}

}  // namespace model
