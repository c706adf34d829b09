#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "cpnsa/device.hpp"
#include "cpnsa/tensor_view.hpp"

namespace model {

using cpnsa::DType;
using cpnsa::TensorView;

/// Tokens or other integers in device memory.
struct TokenView {
  std::int32_t* data = nullptr;
  std::int64_t count = 0;
};

inline constexpr std::int32_t ignored = -1;  ///< a target that has no loss

inline constexpr double rms_norm_epsilon = 1e-5;

enum class Transposed { none, a, b };  ///< the operand of a product that is read as its transpose
enum class Into { set, add };

/// One step of AdamW for every parameter; see adamw.hpp for the meaning of the numbers.
struct AdamWStep {
  TensorView values, mean, square;  ///< [count], wide; updated
  TensorView gradients;             ///< [count], wide
  const std::uint8_t* decayed;      ///< [count]
  double clip;                      ///< factor of the gradients
  double learning_rate, mean_decay, square_decay, mean_scale, square_scale, epsilon, weight_decay;
};

/// A device, its stream, and the operations of a transformer other than attention. There are two implementations, in
/// folders with the same file names: cpu/ and cuda/.
///
/// Tensors are row-major in the device's memory, one row per token, of two types: `wide`, of the parameters, their
/// gradients and the residual stream, and `narrow`, of the operands of matrix products and attention. Operations are
/// enqueued on the stream; those that return a value wait for it. Two runs give the same bits.
///
/// Errors: cpnsa::DeviceError.
class Operations {
 public:
  Operations(cpnsa::Device& device, cpnsa::Stream stream, DType wide, DType narrow)
      : device_(device), stream_(stream), wide_(wide), narrow_(narrow) {}
  virtual ~Operations() = default;
  Operations(const Operations&) = delete;
  Operations& operator=(const Operations&) = delete;

  cpnsa::Device& device() const { return device_; }
  cpnsa::Stream stream() const { return stream_; }
  DType wide() const { return wide_; }
  DType narrow() const { return narrow_; }

  /// Memory in the order of the stream: released memory may be reused by the next allocation at once.
  void* allocate(std::size_t bytes);
  void release(void* pointer, std::size_t bytes) noexcept;
  std::size_t peak_bytes() const { return peak_bytes_; }  ///< the maximum in use at one time

  /// c (+)= a b, with a or b transposed. a and b are narrow, c is of either type.
  virtual void product(const TensorView& c, const TensorView& a, const TensorView& b, Transposed, Into) = 0;

  /// x[i] = table[tokens[i]]; all wide.
  virtual void look_up(const TensorView& x, const TensorView& table, TokenView tokens) = 0;
  /// dtable[tokens[i]] += dx[i]; all wide.
  virtual void look_up_backward(const TensorView& dtable, const TensorView& dx, TokenView tokens) = 0;

  /// inverse = 1 / sqrt(mean(x^2) + rms_norm_epsilon), y = x inverse gain, for each row. y is narrow, the others are
  /// wide.
  virtual void rms_norm(const TensorView& y, const TensorView& inverse, const TensorView& x,
                        const TensorView& gain) = 0;
  /// dx += ..., dgain += ...; all wide.
  virtual void rms_norm_backward(const TensorView& dx, const TensorView& dgain, const TensorView& dy,
                                 const TensorView& x, const TensorView& inverse, const TensorView& gain) = 0;

  /// Rotates channels (c, c + dim / 2) of each head by the row's angles, in place: x [rows, heads dim] is narrow;
  /// cosine and sine [rows, dim / 2] wide. direction is 1, or -1 for the inverse.
  virtual void rotate(const TensorView& x, const TensorView& cosine, const TensorView& sine, double direction) = 0;

  /// hidden = silu(gate) up; all narrow.
  virtual void gated(const TensorView& hidden, const TensorView& gate, const TensorView& up) = 0;
  virtual void gated_backward(const TensorView& dgate, const TensorView& dup, const TensorView& dhidden,
                              const TensorView& gate, const TensorView& up) = 0;

  /// Returns the sum of -log softmax(logits)[target] over the rows that have a target, in nats; dlogits (narrow) is the
  /// gradient of `scale` times it, for logits that are wide.
  virtual double cross_entropy(const TensorView& dlogits, const TensorView& logits, TokenView targets,
                               double scale) = 0;
  /// best[i] = the column of the largest logit of row i, the first of equal ones.
  virtual void argmax(TokenView best, const TensorView& logits) = 0;

  virtual double sum_of_squares(const TensorView& values) = 0;  ///< the values are wide
  virtual void sum_parts(const TensorView& sum,
                         const TensorView& parts) = 0;  ///< sum[i] = parts[0, i] + parts[1, i] ...
  virtual void adamw(const AdamWStep&) = 0;

 private:
  virtual void* allocate_on_device(std::size_t bytes) = 0;
  virtual void release_on_device(void* pointer) noexcept = 0;

  cpnsa::Device& device_;
  cpnsa::Stream stream_;
  DType wide_, narrow_;
  std::size_t used_bytes_ = 0, peak_bytes_ = 0;
};

/// The operations for a device, which must outlive them. On the CPU both types are `dtype`, f64 or f32; on CUDA
/// `dtype`, which must be bf16, is the narrow type, and f32 the wide one. Throws cpnsa::UnsupportedError for other
/// types.
std::unique_ptr<Operations> make_operations(cpnsa::Device& device, DType dtype);

std::unique_ptr<Operations> make_cpu_operations(cpnsa::Device& device, DType dtype);
/// Defined only where the CUDA device is built.
std::unique_ptr<Operations> make_cuda_operations(cpnsa::Device& device, DType dtype);

}  // namespace model
