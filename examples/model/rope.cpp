#include "examples/model/rope.hpp"

#include <cmath>

namespace model {

Rope::Rope(std::span<const std::int64_t> positions, std::int64_t dim) : half_(dim / 2) {
  for (const std::int64_t position : positions)
    for (std::int64_t pair = 0; pair < half_; ++pair) {
      const double frequency = std::pow(10000.0, -static_cast<double>(pair) / static_cast<double>(half_));
      cosine_.push_back(std::cos(static_cast<double>(position) * frequency));
      sine_.push_back(std::sin(static_cast<double>(position) * frequency));
    }
}

void Rope::rotate(Matrix& x) const {
  turn(x, 1.0);
}

void Rope::rotate_back(Matrix& x) const {
  turn(x, -1.0);
}

void Rope::turn(Matrix& x, double direction) const {
  for (std::int64_t row = 0; row < x.rows; ++row) {
    const double* cosine = cosine_.data() + row * half_;
    const double* sine = sine_.data() + row * half_;
    for (double* head = x.row(row); head < x.row(row) + x.columns; head += 2 * half_)
      for (std::int64_t pair = 0; pair < half_; ++pair) {
        const double first = head[pair], second = head[pair + half_], turned = direction * sine[pair];
        head[pair] = first * cosine[pair] - second * turned;
        head[pair + half_] = second * cosine[pair] + first * turned;
      }
  }
}

}  // namespace model
