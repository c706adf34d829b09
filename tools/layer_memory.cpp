#include "tools/layer_memory.hpp"

#include <algorithm>

namespace cpnsa::tool {

LayerMemory::LayerMemory(Device& device, DType dtype, DType gradient_dtype, std::int64_t rows, const Config& config,
                         const std::vector<LayerTensor>& tensors, bool backward)
    : out_(device, dtype, {rows, config.num_q_heads, config.head_dim_v}),
      selected_bytes_(static_cast<std::size_t>(rows * config.num_kv_heads * config.select_count) *
                      sizeof(std::int32_t)),
      // Never null, which would stand for "not wanted", on a rank without tokens too.
      selected_(device, std::max(selected_bytes_, sizeof(std::int32_t))),
      bytes_(out_.view().bytes() + selected_bytes_) {
  for (const LayerTensor& tensor : tensors) {
    std::vector<std::int64_t> shape = tensor.extents();
    if (tensor.per_token) shape[0] = rows;
    const DeviceTensor& input = add(device, tensor.name, dtype, shape);
    for (TensorView* slot : slots_of(inputs_, tensor.name)) *slot = input.view();
    if (!backward) continue;
    const DeviceTensor& gradient =
        add(device, "d" + tensor.name, tensor.per_token ? gradient_dtype : accumulate_dtype(dtype), shape);
    for (TensorView* slot : slots_of(gradients_, tensor.name)) *slot = gradient.view();
  }
  if (backward) add(device, "dout", dtype, {rows, config.num_q_heads, config.head_dim_v});
}

DeviceTensor& LayerMemory::add(Device& device, const std::string& name, DType dtype,
                               const std::vector<std::int64_t>& shape) {
  DeviceTensor& tensor = tensors_.emplace(name, DeviceTensor(device, dtype, shape)).first->second;
  bytes_ += tensor.view().bytes();
  return tensor;
}

}  // namespace cpnsa::tool
