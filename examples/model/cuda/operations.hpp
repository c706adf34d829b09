#pragma once

#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include "examples/model/operations.hpp"

namespace model {

/// cuBLAS, CUB and a few kernels: float32 is the wide type, bf16 the narrow one, and sums are float32. A method a file.
class CudaOperations final : public Operations {
 public:
  explicit CudaOperations(cpnsa::Device& device);
  ~CudaOperations() override;

  void product(const TensorView& c, const TensorView& a, const TensorView& b, Transposed, Into) override;
  void look_up(const TensorView& x, const TensorView& table, TokenView tokens) override;
  void look_up_backward(const TensorView& dtable, const TensorView& dx, TokenView tokens) override;
  void rms_norm(const TensorView& y, const TensorView& inverse, const TensorView& x, const TensorView& gain) override;
  void rms_norm_backward(const TensorView& dx, const TensorView& dgain, const TensorView& dy, const TensorView& x,
                         const TensorView& inverse, const TensorView& gain) override;
  void rotate(const TensorView& x, const TensorView& cosine, const TensorView& sine, double direction) override;
  void gated(const TensorView& hidden, const TensorView& gate, const TensorView& up) override;
  void gated_backward(const TensorView& dgate, const TensorView& dup, const TensorView& dhidden, const TensorView& gate,
                      const TensorView& up) override;
  double cross_entropy(const TensorView& dlogits, const TensorView& logits, TokenView targets, double scale) override;
  void argmax(TokenView best, const TensorView& logits) override;
  double sum_of_squares(const TensorView& values) override;
  void sum_parts(const TensorView& sum, const TensorView& parts) override;
  void adamw(const AdamWStep&) override;

 private:
  void* allocate_on_device(std::size_t bytes) override;
  void release_on_device(void* pointer) noexcept override;
  double sum(const TensorView& values) const;  // f64
  cudaStream_t native() const { return static_cast<cudaStream_t>(stream().handle); }

  cudaMemPool_t pool_ = nullptr;
  cublasHandle_t cublas_ = nullptr;
};

}  // namespace model
