#include "src/planning/checked.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "cpnsa/error.hpp"

namespace cpnsa {

std::int64_t checked_product(std::initializer_list<std::int64_t> factors, std::string_view name) {
  std::int64_t product = 1;
  for (const std::int64_t factor : factors)
    if (__builtin_mul_overflow(product, factor, &product))
      throw ArgumentError(fmt::format("{}: found {}, expected a product below 2^63", name, fmt::join(factors, " * ")));
  return product;
}

}  // namespace cpnsa
