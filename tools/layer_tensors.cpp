#include "tools/layer_tensors.hpp"

#include <fmt/format.h>

#include "cpnsa/schema.hpp"

namespace cpnsa::tool {
namespace {

std::vector<Extent> extents_of(const schema::Shape& shape, const Config& config, std::int64_t tokens) {
  std::vector<Extent> extents;
  for (const schema::Extent extent : shape)
    extents.push_back({std::string(name_of(extent)), size_of(extent, config, tokens)});
  return extents;
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

std::vector<LayerTensor> layer_tensors(const Config& config, std::int64_t tokens, bool separate_kv, bool with_options) {
  std::vector<LayerTensor> list;
  for (const schema::Tensor& tensor : schema::tensors) {
    if (!tensor.used_by(config.compressor) || !(with_options || tensor.option.empty())) continue;
    const bool shared = !tensor.shared.empty() && !separate_kv;
    const std::string name(shared ? tensor.shared : tensor.name.view());
    if (shared && list.back().name == name) continue;
    list.push_back({name, extents_of(tensor.shape, config, tokens), tensor.per_token, !tensor.required, tensor.option});
  }
  return list;
}

LayerTensor dout_tensor(const Config& config, std::int64_t tokens) {
  return {"dout", extents_of(schema::out_shape, config, tokens), true};
}

std::vector<std::string> gradient_files(const Config& config, std::int64_t tokens) {
  std::vector<std::string> names;
  for (const LayerTensor& tensor : layer_tensors(config, tokens, false, true))
    names.push_back(fmt::format("d{}.npy", tensor.name));
  for (const schema::Tensor& tensor : schema::tensors)
    names.push_back(fmt::format("{}.npy", tensor.gradient_name().view()));
  return names;
}

}  // namespace cpnsa::tool
