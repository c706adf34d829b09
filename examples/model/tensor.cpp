#include "examples/model/tensor.hpp"

#include <array>

namespace model {
namespace {

// A tensor of one or two dimensions.
Tensor like(Operations& operations, DType dtype, const TensorView& view) {
  return view.rank == 1 ? Tensor(operations, dtype, {view.shape[0]})
                        : Tensor(operations, dtype, {view.shape[0], view.shape[1]});
}

}  // namespace

Tokens::Tokens(Operations& operations, std::span<const std::int32_t> tokens)
    : Tokens(operations, static_cast<std::int64_t>(tokens.size())) {
  operations.device().copy(memory_.data(), tokens.data(), tokens.size_bytes(), operations.stream());
  operations.device().synchronize(operations.stream());
}

std::vector<std::int32_t> Tokens::read(Operations& operations) const {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(count_));
  operations.device().copy(tokens.data(), memory_.data(), memory_.bytes(), operations.stream());
  operations.device().synchronize(operations.stream());
  return tokens;
}

TensorView shaped(const TensorView& view, std::initializer_list<std::int64_t> shape) {
  return TensorView(view.data, view.dtype, shape);
}

Tensor zeros(Operations& operations, DType dtype, std::initializer_list<std::int64_t> shape) {
  Tensor tensor(operations, dtype, shape);
  operations.device().fill_zero(tensor.view().data, tensor.view().bytes(), operations.stream());
  return tensor;
}

Tensor copy(Operations& operations, const TensorView& source) {
  Tensor tensor = like(operations, source.dtype, source);
  operations.device().copy(tensor.view().data, source.data, source.bytes(), operations.stream());
  return tensor;
}

Tensor narrowed(Operations& operations, const TensorView& source) {
  Tensor tensor = like(operations, operations.narrow(), source);
  const std::array all{cpnsa::Conversion{tensor.view().data, source.data, source.elements()}};
  operations.device().run(cpnsa::Convert{operations.narrow(), source.dtype, all}, operations.stream());
  return tensor;
}

void write(Operations& operations, const TensorView& destination, std::span<const double> values) {
  const auto copy_from = [&](const void* source) {
    operations.device().copy(destination.data, source, destination.bytes(), operations.stream());
    operations.device().synchronize(operations.stream());
  };
  if (destination.dtype == DType::f64) return copy_from(values.data());
  const std::vector<float> rounded(values.begin(), values.end());
  copy_from(rounded.data());
}

std::vector<double> read(Operations& operations, const TensorView& source) {
  const auto copy_to = [&](void* destination) {
    operations.device().copy(destination, source.data, source.bytes(), operations.stream());
    operations.device().synchronize(operations.stream());
  };
  std::vector<double> values(static_cast<std::size_t>(source.elements()));
  if (source.dtype == DType::f64) {
    copy_to(values.data());
  } else {
    std::vector<float> floats(values.size());
    copy_to(floats.data());
    values.assign(floats.begin(), floats.end());
  }
  return values;
}

}  // namespace model
