#pragma once

#include "examples/model/operations.hpp"

namespace model {

/// Loops over float64 or float32, and Eigen's matrix products. One method per file.
class CpuOperations final : public Operations {
 public:
  CpuOperations(cpnsa::Device& device, DType dtype) : Operations(device, {}, dtype, dtype) {}

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
  void* allocate_on_device(std::size_t bytes) override { return device().allocate(bytes); }
  void release_on_device(void* pointer) noexcept override { device().deallocate(pointer); }
};

/// Calls `body` with a value of the type.
template <class Body>
decltype(auto) with_type(DType dtype, Body body) {
  return dtype == DType::f64 ? body(double{}) : body(float{});
}

/// Row `index` of a tensor.
template <class Real>
Real* row(const TensorView& view, std::int64_t index) {
  return static_cast<Real*>(view.data) + index * view.shape[1];
}

}  // namespace model
