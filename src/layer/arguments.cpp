#include "src/layer/arguments.hpp"

#include <fmt/format.h>

#include <optional>
#include <string>

#include "cpnsa/error.hpp"
#include "cpnsa/schema.hpp"

namespace cpnsa {
namespace {

/// Checks one call's tensors.
class TensorChecks {
 public:
  TensorChecks(const LayerPlan& layer, const Device& device) : layer_(layer), device_(device) {}

  void tensor(const TensorView& view, const std::string& name, DType dtype, const schema::Shape& shape) const {
    expect(view, name, dtype, schema::sizes_of(shape, layer_.config, layer_.plan.rows));
    device_.check_pointer(view.data, view.bytes(), name);
  }

  void inputs(const AttentionInputs& inputs) const {
    schema::for_each_tensor(
        [&](const schema::Tensor& tensor, const TensorView& view) {
          const std::string name = tensor.name.str();
          check_used(view, tensor, name);
          if (view || (tensor.required && tensor.used_by(layer_.config.compressor)))
            this->tensor(view, name, layer_.options.dtype, tensor.shape);
        },
        inputs);
  }

  void gradients(const AttentionInputs& inputs, const AttentionGradients& gradients) const {
    schema::for_each_tensor(
        [&](const schema::Tensor& tensor, const TensorView& view, const TensorView& input) {
          const std::string name = tensor.gradient_name().str();
          check_used(view, tensor, name);
          const DType dtype = tensor.per_token ? layer_.gradient_dtype : layer_.parameter_gradient_dtype;
          if (view || tensor.per_token) this->tensor(view, name, dtype, tensor.shape);
          if (view && !input)
            throw ArgumentError(fmt::format("{}: found one, expected none without {}", name, tensor.name.view()));
        },
        gradients, inputs);
  }

 private:
  void check_used(const TensorView& view, const schema::Tensor& tensor, const std::string& name) const {
    const Compressor compressor = layer_.config.compressor;
    if (view && !tensor.used_by(compressor))
      throw ArgumentError(fmt::format("{}: found {}, expected no tensor with the {} compressor", name, describe(view),
                                      name_of(compressor)));
  }

  const LayerPlan& layer_;
  const Device& device_;
};

}  // namespace

void validate_layer(const Config& config, const Partition& partition, Device& device, const Communicator& communicator,
                    const AttentionOptions& options) {
  config.validate();
  device.check_supported(config, options.dtype);
  communicator.check_device(device);
  if (partition.ranks() != communicator.size())
    throw ArgumentError(fmt::format("partition: found {} ranks, expected {}, the communicator's size",
                                    partition.ranks(), communicator.size()));
  if (partition.select_block() != config.select_block)
    throw ArgumentError(fmt::format("partition: found select_block {}, expected {}, the configuration's",
                                    partition.select_block(), config.select_block));
  const auto check_type = [&](const char* name, std::optional<DType> found) {
    if (found && *found != options.dtype && *found != accumulate_dtype(options.dtype))
      throw ArgumentError(fmt::format("{}: found {}, expected {} or {}", name, name_of(*found), name_of(options.dtype),
                                      name_of(accumulate_dtype(options.dtype))));
  };
  check_type("gradient_dtype", options.gradient_dtype);
  check_type("parameter_gradient_dtype", options.parameter_gradient_dtype);
  // Block locations and slots are 32-bit, which bounds what one rank may own or a pool may hold.
  constexpr std::int64_t max_rows = (std::int64_t{1} << 31) - 1;
  if (partition.tokens() > max_rows)
    throw ArgumentError(fmt::format("tokens: found {}, expected at most {}", partition.tokens(), max_rows));
}

void validate_forward(const LayerPlan& layer, const Device& device, const ForwardArguments& given) {
  const TensorChecks check(layer, device);
  check.inputs(given.inputs);
  check.tensor(given.out, "out", layer.options.dtype, schema::out_shape);
  if (given.selected) device.check_pointer(given.selected, layer.selected_bytes(), "selected");
  if (layer.options.backward != (given.saved != nullptr))
    throw ArgumentError(fmt::format("saved: found {}, expected {}", given.saved ? "one" : "none",
                                    layer.options.backward ? "one, for the backward" : "none, without a backward"));
  if (given.saved) device.check_pointer(given.saved->memory, layer.saved_bytes, "saved");
  device.check_pointer(given.workspace, layer.forward_bytes, "workspace");
}

void validate_backward(const LayerPlan& layer, const Device& device, const BackwardArguments& given) {
  const TensorChecks check(layer, device);
  check.inputs(given.inputs);
  check.tensor(given.dout, "dout", layer.options.dtype, schema::out_shape);
  check.gradients(given.inputs, given.gradients);
  device.check_pointer(given.saved_memory, layer.saved_bytes, "saved");
  device.check_pointer(given.workspace, layer.backward_bytes, "workspace");
}

}  // namespace cpnsa
