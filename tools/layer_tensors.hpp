#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "cpnsa/attention.hpp"
#include "cpnsa/config.hpp"

namespace cpnsa::tool {

/// One extent of a tensor's shape, with the symbol or key it comes from.
struct Extent {
  std::string name;
  std::int64_t size;
};

/// A tensor that goes into a layer: the name of its file without ".npy", and its shape.
struct LayerTensor {
  std::string name;           ///< "q", "k_cmp", "compress_k_pos"
  std::vector<Extent> shape;  ///< of the whole sequence; a token tensor's first extent is T
  bool per_token = false;     ///< sharded by tokens; otherwise a parameter, which every rank holds whole
  bool optional = false;

  std::vector<std::int64_t> extents() const;
  std::int64_t elements_per_row() const;  ///< of a token tensor
  std::string describe_shape() const;     ///< "[T = 700, num_q_heads = 4, head_dim_qk = 16]"
};

/// Every input tensor of a layer of T = `tokens`: q, k and v (one for all branches, or one each), gate, and the
/// parameters of both compressors.
std::vector<LayerTensor> layer_tensors(const Config& config, std::int64_t tokens, bool separate_kv);

/// The tensor that the backward is given: the gradient of out.
LayerTensor dout_tensor(const Config& config, std::int64_t tokens);

/// Whether the name is a compressor's parameter of any kind; for files that the configured compressor does not take.
const std::vector<std::string>& all_parameter_names();

/// Where the tensor of this name goes: the views of `tensors` (AttentionInputs or AttentionGradients) that it fills.
template <class Tensors>
std::vector<TensorView*> slots_of(Tensors& tensors, std::string_view name) {
  if (name == "q") return {&tensors.q};
  if (name == "gate") return {&tensors.gate};
  const auto branches = [](BranchTensors& kv, std::string_view branch) -> std::vector<TensorView*> {
    if (branch == "_cmp") return {&kv.cmp};
    if (branch == "_slc") return {&kv.slc};
    if (branch == "_win") return {&kv.win};
    return {&kv.cmp, &kv.slc, &kv.win};
  };
  if (name.starts_with('k')) return branches(tensors.k, name.substr(1));
  if (name.starts_with('v')) return branches(tensors.v, name.substr(1));

  constexpr std::string_view prefix = "compress_k_";
  CompressorTensors& parameters = name.starts_with(prefix) ? tensors.compress_k : tensors.compress_v;
  const std::string_view parameter = name.substr(prefix.size());
  if (parameter == "pos") return {&parameters.pos};
  if (parameter == "weight") return {&parameters.weight};
  if (parameter == "w1") return {&parameters.w1};
  if (parameter == "b1") return {&parameters.b1};
  if (parameter == "w2") return {&parameters.w2};
  return {&parameters.b2};
}

}  // namespace cpnsa::tool
