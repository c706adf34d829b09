#pragma once

#include <map>
#include <string>
#include <vector>

#include "cpnsa/attention.hpp"
#include "tools/device_tensor.hpp"
#include "tools/layer_tensors.hpp"

namespace cpnsa::tool {

/// One rank's tensors of a layer in device memory: inputs and, for a backward, dout and the gradients.
class LayerMemory {
 public:
  /// `gradient_dtype`: of the token tensors' gradients; the parameters' have accumulate_dtype(dtype).
  LayerMemory(Device& device, DType dtype, DType gradient_dtype, std::int64_t rows, const Config& config,
              const std::vector<LayerTensor>& tensors, bool backward);

  DeviceTensor& input(const std::string& name) { return tensors_.at(name); }
  DeviceTensor& gradient(const std::string& name) { return tensors_.at("d" + name); }
  DeviceTensor& out() { return out_; }
  DeviceTensor& dout() { return tensors_.at("dout"); }
  std::int32_t* selected() const { return static_cast<std::int32_t*>(selected_.data()); }  ///< [rows, G, n]

  const AttentionInputs& inputs() const { return inputs_; }
  const AttentionGradients& gradients() const { return gradients_; }
  std::size_t bytes() const { return bytes_; }  ///< of all of them together

 private:
  DeviceTensor& add(Device& device, const std::string& name, DType dtype, const std::vector<std::int64_t>& shape);

  std::map<std::string, DeviceTensor> tensors_;
  DeviceTensor out_;
  std::size_t selected_bytes_;
  DeviceBuffer selected_;
  AttentionInputs inputs_;
  AttentionGradients gradients_;
  std::size_t bytes_ = 0;
};

}  // namespace cpnsa::tool
