#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "examples/model/tensor.hpp"

namespace model {

/// A place in Parameters: a matrix [rows, columns], or a vector of one row.
struct Weight {
  std::int64_t offset = 0;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t size() const { return rows * columns; }
};

/// Every parameter of the model in one array, so that one all-reduce and one optimizer step serve all of them. Each
/// rank holds the same values. Gradients are sums over this rank's tokens until they are summed over the ranks.
///
/// The layers add their weights first, on the host; place() then brings all of them to the device.
class Parameters {
 public:
  Parameters(Operations& operations, std::uint64_t seed) : operations_(operations), random_(seed) {}

  Weight add_normal(std::int64_t rows, std::int64_t columns, double deviation);
  Weight add_constant(std::int64_t rows, std::int64_t columns, double value);
  void add_to(const Weight& weight, std::int64_t row, std::int64_t column, double value);  ///< to the initial value
  void place();

  /// Rounds the values for the matrix products and attention; after every change of them.
  void round();

  Operations& operations() const { return operations_; }
  std::int64_t count() const { return count_; }

  // After place(). The arrays also hold a few zeros between the weights, which stay 0.
  const TensorView& values() const { return values_; }        ///< wide
  const TensorView& gradients() const { return gradients_; }  ///< wide
  const std::uint8_t* decayed() const { return static_cast<const std::uint8_t*>(decayed_.data()); }

  TensorView value(const Weight& weight) const { return part(values_, weight); }
  TensorView rounded(const Weight& weight) const { return part(rounded_, weight); }  ///< narrow
  TensorView gradient(const Weight& weight) const { return part(gradients_, weight); }

 private:
  Weight add(std::int64_t rows, std::int64_t columns, bool decay);
  static TensorView part(const TensorView& whole, const Weight& weight);

  Operations& operations_;
  std::mt19937_64 random_;  // drawn from in the order of creation: the values do not depend on the ranks
  std::int64_t count_ = 0;
  std::vector<double> initial_;
  std::vector<std::uint8_t> initially_decayed_;  // weight decay applies to matrices, not to gains and biases
  Tensor values_, gradients_, rounded_;
  Memory decayed_;
};

}  // namespace model
