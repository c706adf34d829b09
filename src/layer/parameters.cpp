#include "src/layer/parameters.hpp"

#include "cpnsa/schema.hpp"
#include "src/planning/checked.hpp"

namespace cpnsa {

std::int64_t count_parameters(const Config& config) {
  std::int64_t elements = 0;
  for (const schema::Tensor& tensor : schema::tensors) {
    if (tensor.per_token || !tensor.option.empty() || !tensor.used_by(config.compressor)) continue;
    std::int64_t product = 1;
    for (const std::int64_t extent : schema::sizes_of(tensor.shape, config, 0))
      product = checked_product({product, extent}, "parameter");
    elements += product;
  }
  return elements;
}

CompressorPointers pointers_of(const CompressorTensors& tensors) {
  CompressorPointers pointers;
  schema::for_each_compressor_member([](auto, const void*& to, const TensorView& from) { to = from.data; }, pointers,
                                     tensors);
  return pointers;
}

void for_each_parameter(const AttentionGradients& gradients, const std::function<void(const TensorView&)>& visit) {
  schema::for_each_parameter(
      [&](const schema::Tensor&, const TensorView& view) {
        if (view) visit(view);
      },
      gradients);
}

AttentionGradients parameters_in(Arena& memory, const AttentionGradients& like, DType dtype) {
  AttentionGradients result;
  schema::for_each_parameter(
      [&](const schema::Tensor&, TensorView& to, const TensorView& from) {
        if (!from) return;
        to = from;
        to.dtype = dtype;
        to.data = memory.take(to.bytes());
      },
      result, like);
  return result;
}

std::string given_parameters(const AttentionGradients& gradients) {
  std::string bits;
  schema::for_each_parameter([&](const schema::Tensor&, const TensorView& view) { bits += view ? '1' : '0'; },
                             gradients);
  return bits;
}

}  // namespace cpnsa
