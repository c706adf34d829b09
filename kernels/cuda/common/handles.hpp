#pragma once

#include "kernels/cuda/common/matrix_product.hpp"

namespace cpnsa::cuda {

/// Library handles that the device owns and ops use.
struct Handles {
  MatrixProducts products;
};

}  // namespace cpnsa::cuda
