#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <optional>
#include <string_view>

#include "cpnsa/error.hpp"
#include "cpnsa/names.hpp"

namespace cpnsa::python {

/// The value of an enum by its name; ArgumentError lists the names there are.
template <NamedEnum Enum>
Enum named(std::string_view what, std::string_view name) {
  if (const std::optional<Enum> value = value_named<Enum>(name)) return *value;
  throw ArgumentError(fmt::format("{}: found '{}', expected one of {}", what, name, fmt::join(enum_names<Enum>, ", ")));
}

}  // namespace cpnsa::python
