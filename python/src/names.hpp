#pragma once

#include <fmt/format.h>

#include <initializer_list>
#include <string>
#include <string_view>

#include "cpnsa/dtype.hpp"
#include "cpnsa/error.hpp"

namespace cpnsa::python {

/// The enumerator of this name; ArgumentError lists the names there are.
template <class Enum>
Enum named(std::string_view what, std::string_view name, std::initializer_list<Enum> all) {
  std::string known;
  for (const Enum value : all) {
    if (name_of(value) == name) return value;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", name_of(value));
  }
  throw ArgumentError(fmt::format("{}: found '{}', expected one of {}", what, name, known));
}

inline DType dtype_named(std::string_view what, std::string_view name) {
  return named(what, name, {DType::f64, DType::f32, DType::bf16, DType::f16});
}

}  // namespace cpnsa::python
