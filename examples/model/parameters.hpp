#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "examples/model/matrix.hpp"

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
class Parameters {
 public:
  explicit Parameters(std::uint64_t seed) : random_(seed) {}

  Weight add_normal(std::int64_t rows, std::int64_t columns, double deviation);
  Weight add_constant(std::int64_t rows, std::int64_t columns, double value);

  double* value(const Weight& weight) { return values.data() + weight.offset; }
  const double* value(const Weight& weight) const { return values.data() + weight.offset; }
  double* gradient(const Weight& weight) { return gradients.data() + weight.offset; }

  std::vector<double> values;
  std::vector<double> gradients;
  std::vector<bool> decayed;  ///< whether weight decay applies: to matrices, not to gains and biases

 private:
  Weight add(std::int64_t rows, std::int64_t columns, bool decay);

  std::mt19937_64 random_;  // drawn from in the order of creation: the values do not depend on the ranks
};

}  // namespace model
