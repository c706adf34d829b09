#include "src/layer/tensor_checks.hpp"

#include <fmt/format.h>

#include "cpnsa/arena.hpp"
#include "cpnsa/error.hpp"

namespace cpnsa {

void TensorChecks::tensor(const TensorView& view, const std::string& name, DType dtype,
                          const schema::Shape& shape) const {
  expect(view, name, dtype, schema::sizes_of(shape, config_, rows_));
  memory(view.data, view.bytes(), size_of(dtype), name);
}

void TensorChecks::memory(const void* pointer, std::size_t bytes, std::size_t alignment,
                          const std::string& name) const {
  device_.check_pointer(pointer, bytes, name);
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  if (bytes > 0 && address % alignment != 0)
    throw ArgumentError(
        fmt::format("{}: found address {:#x}, expected one aligned to {} bytes", name, address, alignment));
}

void TensorChecks::buffer(const void* pointer, std::size_t bytes, const std::string& name) const {
  memory(pointer, bytes, device_.host_accessible() ? 64 : Arena::alignment, name);
}

void TensorChecks::inputs(const AttentionInputs& inputs) const {
  schema::for_each_tensor(
      [&](const schema::Tensor& tensor, const TensorView& view) {
        const std::string name = tensor.name.str();
        used(view, tensor, name);
        if (view || (tensor.required && tensor.used_by(config_.compressor)))
          this->tensor(view, name, dtype_, tensor.shape);
      },
      inputs);
}

void TensorChecks::used(const TensorView& view, const schema::Tensor& tensor, const std::string& name) const {
  if (view && !tensor.used_by(config_.compressor))
    throw ArgumentError(fmt::format("{}: found {}, expected no tensor with the {} compressor", name, describe(view),
                                    name_of(config_.compressor)));
  const bool declared = tensor.option.empty() || (tensor.option == "sinks" ? sinks_ : compressed_query_);
  if (view && !declared)
    throw ArgumentError(
        fmt::format("{}: found {}, expected no tensor without the option {}", name, describe(view), tensor.option));
}

}  // namespace cpnsa
