#include <algorithm>

#include "examples/model/cpu/operations.hpp"

namespace model {

void CpuOperations::look_up(const TensorView& x, const TensorView& table, TokenView tokens) {
  with_type(wide(), [&](auto zero) {
    using Real = decltype(zero);
    for (std::int64_t i = 0; i < tokens.count; ++i)
      std::copy_n(row<Real>(table, tokens.data[i]), x.shape[1], row<Real>(x, i));
  });
}

void CpuOperations::look_up_backward(const TensorView& dtable, const TensorView& dx, TokenView tokens) {
  with_type(wide(), [&](auto zero) {
    using Real = decltype(zero);
    for (std::int64_t i = 0; i < tokens.count; ++i) {
      Real* sum = row<Real>(dtable, tokens.data[i]);
      for (std::int64_t c = 0; c < dx.shape[1]; ++c) sum[c] += row<Real>(dx, i)[c];
    }
  });
}

}  // namespace model
