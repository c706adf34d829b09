#include "tools/layer_tensors.hpp"

#include <fmt/format.h>

namespace cpnsa::tool {
namespace {

void add_parameters(std::vector<LayerTensor>& tensors, const Config& config, const std::string& prefix,
                    const Extent& dim, std::int64_t hidden_size) {
  const Extent heads{"num_kv_heads", config.num_kv_heads};
  const Extent block{"compress_block", config.compress_block};
  const Extent flat{"compress_block * " + dim.name, config.compress_block * dim.size};
  const Extent hidden{"hidden", hidden_size};
  const auto add = [&](const char* name, std::vector<Extent> shape, bool optional = false) {
    tensors.push_back({prefix + name, std::move(shape), false, optional});
  };
  add("pos", {heads, block, dim}, true);
  if (config.compressor == Compressor::linear) add("weight", {heads, flat, dim});
  if (config.compressor != Compressor::mlp) return;
  add("w1", {heads, flat, hidden});
  add("b1", {heads, hidden});
  add("w2", {heads, hidden, dim});
  add("b2", {heads, dim});
}

}  // namespace

std::vector<std::int64_t> LayerTensor::extents() const {
  std::vector<std::int64_t> sizes;
  for (const Extent& extent : shape) sizes.push_back(extent.size);
  return sizes;
}

std::int64_t LayerTensor::elements_per_row() const {
  std::int64_t elements = 1;
  for (std::size_t i = 1; i < shape.size(); ++i) elements *= shape[i].size;
  return elements;
}

std::string LayerTensor::describe_shape() const {
  std::string text = "[";
  for (const Extent& extent : shape)
    text += fmt::format("{}{} = {}", text.size() > 1 ? ", " : "", extent.name, extent.size);
  return text + "]";
}

std::vector<LayerTensor> layer_tensors(const Config& config, std::int64_t tokens, bool separate_kv) {
  const Extent rows{"T", tokens}, kv_heads{"num_kv_heads", config.num_kv_heads},
      q_heads{"num_q_heads", config.num_q_heads}, dim_k{"head_dim_qk", config.head_dim_qk},
      dim_v{"head_dim_v", config.head_dim_v};

  std::vector<LayerTensor> tensors{{"q", {rows, q_heads, dim_k}, true}};
  const std::vector<std::string> branches =
      separate_kv ? std::vector<std::string>{"_cmp", "_slc", "_win"} : std::vector<std::string>{""};
  for (const std::string& branch : branches) {
    tensors.push_back({"k" + branch, {rows, kv_heads, dim_k}, true});
    tensors.push_back({"v" + branch, {rows, kv_heads, dim_v}, true});
  }
  tensors.push_back({"gate", {rows, q_heads, {"branches", 3}}, true});
  add_parameters(tensors, config, "compress_k_", dim_k, config.compress_hidden_k);
  add_parameters(tensors, config, "compress_v_", dim_v, config.compress_hidden_v);
  return tensors;
}

LayerTensor dout_tensor(const Config& config, std::int64_t tokens) {
  return {"dout", {{"T", tokens}, {"num_q_heads", config.num_q_heads}, {"head_dim_v", config.head_dim_v}}, true};
}

const std::vector<std::string>& all_parameter_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all;
    for (const char* side : {"compress_k_", "compress_v_"})
      for (const char* name : {"pos", "weight", "w1", "b1", "w2", "b2"}) all.push_back(std::string(side) + name);
    return all;
  }();
  return names;
}

}  // namespace cpnsa::tool
