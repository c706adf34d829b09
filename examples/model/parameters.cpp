#include "examples/model/parameters.hpp"

#include <cmath>
#include <numbers>

namespace model {

Weight Parameters::add(std::int64_t rows, std::int64_t columns, bool decay) {
  const Weight weight{static_cast<std::int64_t>(values.size()), rows, columns};
  const std::size_t size = values.size() + static_cast<std::size_t>(weight.size());
  values.resize(size);
  gradients.resize(size);
  decayed.resize(size, decay);
  return weight;
}

Weight Parameters::add_normal(std::int64_t rows, std::int64_t columns, double deviation) {
  const Weight weight = add(rows, columns, true);
  const auto uniform = [&] { return (static_cast<double>(random_() >> 11) + 0.5) * 0x1p-53; };
  for (std::int64_t i = 0; i < weight.size(); ++i) {  // Box and Muller
    const double radius = std::sqrt(-2.0 * std::log(uniform()));
    value(weight)[i] = deviation * radius * std::cos(2.0 * std::numbers::pi * uniform());
  }
  return weight;
}

Weight Parameters::add_constant(std::int64_t rows, std::int64_t columns, double constant) {
  const Weight weight = add(rows, columns, false);
  for (std::int64_t i = 0; i < weight.size(); ++i) value(weight)[i] = constant;
  return weight;
}

}  // namespace model
