#include "examples/model/parameters.hpp"

#include <array>
#include <cmath>
#include <numbers>
#include <string>

#include "cpnsa/error.hpp"

namespace model {
namespace {

constexpr std::int64_t alignment = 128;  // elements: 256 bytes in the narrowest type

}  // namespace

Weight Parameters::add(std::int64_t rows, std::int64_t columns, bool decay) {
  const Weight weight{static_cast<std::int64_t>(initial_.size()), rows, columns};
  const std::int64_t end = weight.offset + weight.size();
  const auto size = static_cast<std::size_t>((end + alignment - 1) / alignment * alignment);
  initial_.resize(size);
  initially_decayed_.resize(size, decay);
  count_ += weight.size();
  return weight;
}

Weight Parameters::add_normal(std::int64_t rows, std::int64_t columns, double deviation) {
  const Weight weight = add(rows, columns, true);
  const auto uniform = [&] { return (static_cast<double>(random_() >> 11) + 0.5) * 0x1p-53; };
  for (std::int64_t i = 0; i < weight.size(); ++i) {  // by the method of Box and Muller
    const double radius = std::sqrt(-2.0 * std::log(uniform()));
    initial_[static_cast<std::size_t>(weight.offset + i)] =
        deviation * radius * std::cos(2.0 * std::numbers::pi * uniform());
  }
  return weight;
}

Weight Parameters::add_constant(std::int64_t rows, std::int64_t columns, double constant) {
  const Weight weight = add(rows, columns, false);
  for (std::int64_t i = 0; i < weight.size(); ++i) initial_[static_cast<std::size_t>(weight.offset + i)] = constant;
  return weight;
}

void Parameters::add_to(const Weight& weight, std::int64_t row, std::int64_t column, double value) {
  initial_[static_cast<std::size_t>(weight.offset + row * weight.columns + column)] += value;
}

void Parameters::upload() {
  const auto size = static_cast<std::int64_t>(initial_.size());
  values_ = Tensor(operations_, operations_.wide(), {size});
  gradients_ = zeros(operations_, operations_.wide(), {size});
  rounded_ = Tensor(operations_, operations_.narrow(), {size});
  decayed_ = Memory(operations_, initially_decayed_.size());
  operations_.device().copy(decayed_.data(), initially_decayed_.data(), decayed_.bytes(), operations_.stream());
  write(operations_, values_, initial_);
  round();
  initial_ = {};
}

std::vector<double> Parameters::read_values() const {
  return read(operations_, values_);
}

void Parameters::write_values(std::span<const double> values) {
  if (static_cast<std::int64_t>(values.size()) != values_.view().elements())
    throw cpnsa::ArgumentError("parameters: found " + std::to_string(values.size()) + " values, expected " +
                               std::to_string(values_.view().elements()));
  write(operations_, values_, values);
  round();
}

void Parameters::round() {
  const std::array all{cpnsa::Conversion{rounded_.view().data, values_.view().data, values_.view().elements()}};
  operations_.device().run(cpnsa::Convert{operations_.narrow(), operations_.wide(), all}, operations_.stream());
}

TensorView Parameters::part(const TensorView& whole, const Weight& weight) {
  return TensorView(
      static_cast<char*>(whole.data) + static_cast<std::size_t>(weight.offset) * cpnsa::size_of(whole.dtype),
      whole.dtype, {weight.rows, weight.columns});
}

}  // namespace model
