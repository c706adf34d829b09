#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "examples/model/tensor.hpp"

namespace model {

/// The position of a weight in Parameters: a matrix [rows, columns], or a vector with one row.
struct Weight {
  std::int64_t offset = 0;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t size() const { return rows * columns; }
};

/// All parameters of the model in one array, so that one all-reduce and one optimizer step handle all of them. Every
/// rank holds the same values. Gradients are sums over this rank's tokens until they are summed over the ranks.
///
/// The layers first add their weights on the host; upload() then copies all of them to the device.
class Parameters {
 public:
  Parameters(Operations& operations, std::uint64_t seed) : operations_(operations), random_(seed) {}

  Weight add_normal(std::int64_t rows, std::int64_t columns, double deviation);
  Weight add_constant(std::int64_t rows, std::int64_t columns, double value);
  void add_to(const Weight& weight, std::int64_t row, std::int64_t column, double value);  ///< to the initial value
  void upload();

  /// Rounds the values for matrix products and attention. Call it after every change of the values.
  void round();

  /// All values on the host, in the order of creation, padding included; and other ones for them. Both wait for the
  /// stream. ArgumentError for another number of values.
  std::vector<double> read_values() const;
  void write_values(std::span<const double> values);

  Operations& operations() const { return operations_; }
  std::int64_t count() const { return count_; }

  // Valid after upload(). The arrays also have padding between the weights, which stays 0.
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
  std::mt19937_64 random_;  // used in the order of creation, so that the values do not depend on the number of ranks
  std::int64_t count_ = 0;
  std::vector<double> initial_;
  std::vector<std::uint8_t> initially_decayed_;  // weight decay applies to matrices, not to gains and biases
  Tensor values_, gradients_, rounded_;
  Memory decayed_;
};

}  // namespace model
