#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "cpnsa/attention.hpp"
#include "cpnsa/config.hpp"
#include "cpnsa/schema.hpp"

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
  std::string_view option{};  ///< schema::Tensor::option

  std::vector<std::int64_t> extents() const;
  std::int64_t elements_per_row() const;  ///< of a token tensor
  std::string describe_shape() const;     ///< "[T = 700, num_q_heads = 4, head_dim_qk = 16]"
};

/// Every input tensor of a layer of T = `tokens`: q, k and v (one for all branches, or one each), gate, and the
/// parameters of both compressors.
/// `with_options`: also those that an option of AttentionOptions declares.
std::vector<LayerTensor> layer_tensors(const Config& config, std::int64_t tokens, bool separate_kv,
                                       bool with_options = false);

/// The tensor that the backward is given: the gradient of out.
LayerTensor dout_tensor(const Config& config, std::int64_t tokens);

/// The name of every gradient's file that a run can write: a run that does not write one removes that of an earlier
/// run.
std::vector<std::string> gradient_files(const Config& config, std::int64_t tokens);

/// Where the tensor of this name goes: the views of `tensors` (AttentionInputs or AttentionGradients) that it fills.
template <class Tensors>
std::vector<TensorView*> slots_of(Tensors& tensors, std::string_view name) {
  std::vector<TensorView*> slots;
  schema::for_each_tensor(
      [&](const schema::Tensor& tensor, TensorView& view) {
        if (tensor.name.view() == name || tensor.shared == name) slots.push_back(&view);
      },
      tensors);
  return slots;
}

}  // namespace cpnsa::tool
