#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string_view>
#include <type_traits>

#include "cpnsa/require_cxx20.hpp"

namespace cpnsa {

/// An enum whose values have names: names_of(Enum), defined beside the enum, returns them as an array of
/// std::string_view, in the order of the values, which count from 0.
template <class Enum>
concept NamedEnum = std::is_enum_v<Enum> && requires(Enum value) {
  names_of(value).size();
};

/// The names of all values of an enum, in their order.
template <NamedEnum Enum>
inline constexpr auto enum_names = names_of(Enum{});

/// All values of an enum, in their order.
template <NamedEnum Enum>
inline constexpr auto enum_values = [] {
  std::array<Enum, enum_names<Enum>.size()> values{};
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<Enum>(i);
  return values;
}();

/// The name of a value; "?" for a number that is none of the enum's. The text ends with a zero byte.
template <NamedEnum Enum>
constexpr std::string_view name_of(Enum value) {
  const auto index = static_cast<std::size_t>(value);
  return index < enum_names<Enum>.size() ? enum_names<Enum>[index] : std::string_view("?");
}

/// The value of this name; nothing for a name that no value has.
template <NamedEnum Enum>
constexpr std::optional<Enum> value_named(std::string_view name) {
  for (const Enum value : enum_values<Enum>)
    if (name_of(value) == name) return value;
  return std::nullopt;
}

}  // namespace cpnsa
