// Everything a caller can get wrong in a step, checked before anything is enqueued.

#include <fmt/format.h>

#include "cpnsa/error.hpp"
#include "src/attention_impl.hpp"

namespace cpnsa {

void Layer::check(const TensorView& view, const std::string& name, DType dtype, const schema::Shape& shape) const {
  expect(view, name, dtype, schema::sizes_of(shape, config, plan.rows));
  device.check_pointer(view.data, view.bytes(), name);
}

void Layer::check_used(const TensorView& view, const schema::Tensor& tensor, const std::string& name) const {
  if (view && !tensor.used_by(config.compressor))
    throw ArgumentError(fmt::format("{}: found {}, expected no tensor with the {} compressor", name, describe(view),
                                    name_of(config.compressor)));
}

void Layer::validate_inputs(const AttentionInputs& inputs) const {
  schema::for_each_tensor(
      [&](const schema::Tensor& tensor, const TensorView& view) {
        const std::string name = tensor.name.str();
        check_used(view, tensor, name);
        if (view || (tensor.required && tensor.used_by(config.compressor)))
          check(view, name, options.dtype, tensor.shape);
      },
      inputs);
}

void Layer::validate_gradients(const AttentionInputs& inputs, const AttentionGradients& gradients) const {
  schema::for_each_tensor(
      [&](const schema::Tensor& tensor, const TensorView& view, const TensorView& input) {
        const std::string name = tensor.gradient_name().str();
        check_used(view, tensor, name);
        if (view || tensor.per_token)
          check(view, name, tensor.per_token ? gradient_type : parameter_gradient_type, tensor.shape);
        if (view && !input)
          throw ArgumentError(fmt::format("{}: found one, expected none without {}", name, tensor.name.view()));
      },
      gradients, inputs);
}

void Layer::validate_forward(const AttentionInputs& inputs, const TensorView& out, const std::int32_t* selected,
                             const SavedForward* saved, const void* workspace) const {
  validate_inputs(inputs);
  check(out, "out", options.dtype, schema::out_shape);
  if (selected)
    device.check_pointer(
        selected,
        static_cast<std::size_t>(plan.rows * config.num_kv_heads * config.select_count) * sizeof(std::int32_t),
        "selected");
  if (options.backward != (saved != nullptr))
    throw ArgumentError(fmt::format("saved: found {}, expected {}", saved ? "one" : "none",
                                    options.backward ? "one, for the backward" : "none, without a backward"));
  if (saved) device.check_pointer(saved->memory, saved_bytes, "saved");
  device.check_pointer(workspace, forward_bytes, "workspace");
}

void Layer::validate_backward(const AttentionInputs& inputs, const TensorView& dout, const ForwardRecord& record,
                              const void* saved_memory, const AttentionGradients& gradients,
                              const void* workspace) const {
  if (!options.backward) throw ArgumentError("backward: found options.backward = false, expected true");
  if (record.layer == 0) throw ArgumentError("saved: found none, expected that of a forward");
  if (record.layer != number)
    throw ArgumentError("saved: found that of another layer's forward, expected this layer's");
  if (record.spent)
    throw ArgumentError("saved: found that of a forward whose backward has run, expected another (reuse_saved)");
  validate_inputs(inputs);
  check(dout, "dout", options.dtype, schema::out_shape);
  validate_gradients(inputs, gradients);
  device.check_pointer(saved_memory, saved_bytes, "saved");
  device.check_pointer(workspace, backward_bytes, "workspace");
}

}  // namespace cpnsa
