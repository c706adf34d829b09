#pragma once

// Ties the enums of cpnsa.h to the library's at compile time, without naming a value.

#include <cstddef>
#include <string_view>
#include <utility>

#include "cpnsa/names.hpp"

namespace cpnsa::c {

/// The identifier of an enumerator as the compiler writes it, without its scope: "gelu", "CPNSA_ACTIVATION_GELU". For a
/// number that no enumerator has it is not an identifier.
template <auto value>
constexpr std::string_view identifier_of() {
  // "... [with auto value = cpnsa::Activation::gelu; ...]" (GCC), "... [value = cpnsa::Activation::gelu]" (Clang)
  std::string_view text = __PRETTY_FUNCTION__;
  text.remove_prefix(text.rfind("value = ") + 8);
  text = text.substr(0, text.find_first_of(";]"));
  if (const std::size_t scope = text.rfind("::"); scope != text.npos) text.remove_prefix(scope + 2);
  return text;
}

/// True if `c_identifier` is `prefix` and then `identifier` in capitals.
constexpr bool is_spelling(std::string_view c_identifier, std::string_view prefix, std::string_view identifier) {
  if (!c_identifier.starts_with(prefix)) return false;
  c_identifier.remove_prefix(prefix.size());
  if (c_identifier.size() != identifier.size()) return false;
  for (std::size_t i = 0; i < identifier.size(); ++i) {
    const char letter = identifier[i];
    if (c_identifier[i] != (letter >= 'a' && letter <= 'z' ? letter - 'a' + 'A' : letter)) return false;
  }
  return true;
}

/// True if the C enum counts from 1 what the library's counts from 0, by the same identifiers behind `prefix`.
template <NamedEnum Enum, class CEnum>
constexpr bool matches(std::string_view prefix) {
  return [&]<std::size_t... i>(std::index_sequence<i...>) {
    return (is_spelling(identifier_of<static_cast<CEnum>(i + 1)>(), prefix, identifier_of<enum_values<Enum>[i]>()) &&
            ...);
  }
  (std::make_index_sequence<enum_names<Enum>.size()>());
}

}  // namespace cpnsa::c
