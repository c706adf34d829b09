#include "examples/model/rope.hpp"

#include <cmath>

namespace model {

Rope::Rope(Operations& operations, std::span<const std::int64_t> positions, std::int64_t dim)
    : operations_(operations),
      cosine_(operations, operations.wide(), {static_cast<std::int64_t>(positions.size()), dim / 2}),
      sine_(operations, operations.wide(), {static_cast<std::int64_t>(positions.size()), dim / 2}) {
  const std::int64_t half = dim / 2;
  std::vector<double> cosine, sine;
  for (const std::int64_t position : positions)
    for (std::int64_t pair = 0; pair < half; ++pair) {
      const double frequency = std::pow(10000.0, -static_cast<double>(pair) / static_cast<double>(half));
      cosine.push_back(std::cos(static_cast<double>(position) * frequency));
      sine.push_back(std::sin(static_cast<double>(position) * frequency));
    }
  write(operations, cosine_, cosine);
  write(operations, sine_, sine);
}

void Rope::rotate(const TensorView& x) const {
  operations_.rotate(x, cosine_, sine_, 1.0);
}

void Rope::rotate_back(const TensorView& x) const {
  operations_.rotate(x, cosine_, sine_, -1.0);
}

}  // namespace model
