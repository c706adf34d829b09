#pragma once

#include "cpnsa/config.hpp"
#include "cpnsa/dtype.hpp"
#include "kernels/cuda/matrix_product.hpp"

namespace cpnsa::cuda {

/// Chooses the algorithms of all matrix products of the compressor's forward and backward, so that no step does.
void prepare_compress(const Config& config, DType dtype, MatrixProducts& products);

}  // namespace cpnsa::cuda
