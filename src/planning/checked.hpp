#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string_view>

namespace cpnsa {

/// The product of the factors, which are not negative. ArgumentError "<name>: found 2147483648 * 2147483648 * 8,
/// expected a product below 2^63" where it does not fit.
std::int64_t checked_product(std::initializer_list<std::int64_t> factors, std::string_view name);

/// Bytes of `rows` rows of `width` elements of `element` bytes; ArgumentError as above.
inline std::size_t checked_bytes(std::int64_t rows, std::int64_t width, std::size_t element) {
  return static_cast<std::size_t>(checked_product({rows, width, static_cast<std::int64_t>(element)}, "bytes"));
}

}  // namespace cpnsa
