#include "examples/model/cuda/check.hpp"
#include "examples/model/cuda/operations.hpp"

namespace model {

using cuda::check;

// cuBLAS is column-major, where a row-major matrix is its transpose: it is given c^T = b^T a^T.
void CudaOperations::product(const TensorView& c, const TensorView& a, const TensorView& b, Transposed transposed,
                             Into into) {
  if (c.elements() == 0) return;
  const std::int64_t depth = a.shape[transposed == Transposed::a ? 0 : 1];
  if (depth == 0) {
    if (into == Into::set) device().fill_zero(c.data, c.bytes(), stream());
    return;
  }
  const cudaDataType_t type = c.dtype == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F;
  const float one = 1, before = into == Into::add ? 1 : 0;
  check(cublasGemmEx_64(cublas_, transposed == Transposed::b ? CUBLAS_OP_T : CUBLAS_OP_N,
                        transposed == Transposed::a ? CUBLAS_OP_T : CUBLAS_OP_N, c.shape[1], c.shape[0], depth, &one,
                        b.data, CUDA_R_16BF, b.shape[1], a.data, CUDA_R_16BF, a.shape[1], &before, c.data, type,
                        c.shape[1], CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
        "cublasGemmEx_64");
}

}  // namespace model
