#include "examples/model/cpu/operations.hpp"

namespace model {

void CpuOperations::rotate(const TensorView& x, const TensorView& cosine, const TensorView& sine, double direction) {
  with_type(narrow(), [&](auto zero) {
    using Real = decltype(zero);
    const std::int64_t half = cosine.shape[1];
    for (std::int64_t i = 0; i < x.shape[0]; ++i)
      for (Real* head = row<Real>(x, i); head < row<Real>(x, i + 1); head += 2 * half)
        for (std::int64_t pair = 0; pair < half; ++pair) {
          const Real turned = static_cast<Real>(direction) * row<Real>(sine, i)[pair];
          const Real straight = row<Real>(cosine, i)[pair];
          const Real first = head[pair], second = head[pair + half];
          head[pair] = first * straight - second * turned;
          head[pair + half] = second * straight + first * turned;
        }
  });
}

}  // namespace model
