#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>
#include <utility>
#include <vector>

#include "examples/model/operations.hpp"

namespace model {

/// Memory of the operations' pool. It is given back in the order of their stream and counted in their peak, unlike that
/// of a cpnsa::DeviceBuffer, which is freed at once.
class Memory {
 public:
  Memory() = default;
  Memory(Operations& operations, std::size_t bytes)
      : operations_(&operations), data_(operations.allocate(bytes)), bytes_(bytes) {}
  ~Memory() {
    if (operations_) operations_->release(data_, bytes_);
  }
  Memory(Memory&& other) noexcept { swap(other); }
  Memory& operator=(Memory&& other) noexcept {
    Memory released;
    released.swap(*this);
    swap(other);
    return *this;
  }

  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  void swap(Memory& other) noexcept {
    std::swap(operations_, other.operations_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }

  Operations* operations_ = nullptr;
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

/// Owner of an uninitialised tensor.
class Tensor {
 public:
  Tensor() = default;
  Tensor(Operations& operations, DType dtype, std::initializer_list<std::int64_t> shape)
      : memory_(operations, TensorView(nullptr, dtype, shape).bytes()), view_(memory_.data(), dtype, shape) {}

  const TensorView& view() const { return view_; }
  operator const TensorView&() const { return view_; }
  std::int64_t rows() const { return view_.shape[0]; }
  std::int64_t columns() const { return view_.shape[1]; }

 private:
  Memory memory_;
  TensorView view_;
};

/// Owner of tokens.
class Tokens {
 public:
  Tokens(Operations& operations, std::int64_t count)
      : memory_(operations, static_cast<std::size_t>(count) * sizeof(std::int32_t)), count_(count) {}
  Tokens(Operations& operations, std::span<const std::int32_t> tokens);

  operator TokenView() const { return {static_cast<std::int32_t*>(memory_.data()), count_}; }
  std::vector<std::int32_t> read(Operations& operations) const;

 private:
  Memory memory_;
  std::int64_t count_ = 0;
};

/// The same memory with another shape.
TensorView shaped(const TensorView& view, std::initializer_list<std::int64_t> shape);

Tensor zeros(Operations& operations, DType dtype, std::initializer_list<std::int64_t> shape);
Tensor copy(Operations& operations, const TensorView& source);
Tensor narrowed(Operations& operations, const TensorView& source);  ///< a copy, rounded to the narrow type

/// Copies between float64 on the host and a wide tensor; waits for the stream.
void write(Operations& operations, const TensorView& destination, std::span<const double> values);
std::vector<double> read(Operations& operations, const TensorView& source);

}  // namespace model
