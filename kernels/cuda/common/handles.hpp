#pragma once

#include "kernels/cuda/common/matrix_product.hpp"

namespace cpnsa::cuda {

/// What stages need of the device beside memory; owned by it.
struct Handles {
  MatrixProducts products;
};

}  // namespace cpnsa::cuda
