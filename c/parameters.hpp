#pragma once

// Structs and numbers of the interface -> the library's types. Everything throws ArgumentError that names the member.

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "c/boundary.hpp"
#include "cpnsa/attention.hpp"
#include "cpnsa/schema.hpp"

namespace cpnsa::c {

/// Throws unless struct_size may be that of the struct, in a version from the first to one of many years to come.
void check_struct_size(const char* name, std::size_t found, std::size_t first, std::size_t known);
/// Throws unless the members that this version does not know of are zero.
void check_unknown_members(const char* name, const void* given, std::size_t size, std::size_t known);

/// The struct in this version of the library: what the caller's version lacks has its default, what it has more must be
/// zero. `first` is the size that the struct had in its first version.
template <class Struct>
Struct read(const Struct* given, const Struct& defaults, std::size_t first, const char* name) {
  const std::size_t size = not_null(given, name).struct_size;
  check_struct_size(name, size, first, sizeof(Struct));
  check_unknown_members(name, given, size, sizeof(Struct));
  Struct result = defaults;
  std::memcpy(&result, given, std::min(size, sizeof(Struct)));
  return result;
}

/// The value of an enum by its number in the interface, which counts from 1.
template <NamedEnum Enum>
Enum to_enum(std::int32_t number, const std::string& name) {
  constexpr auto& values = enum_values<Enum>;
  if (number >= 1 && static_cast<std::size_t>(number) <= values.size())
    return values[static_cast<std::size_t>(number - 1)];
  std::string expected;
  for (std::size_t i = 0; i < values.size(); ++i)
    expected += fmt::format("{}{} ({})", i == 0 ? "" : ", ", i + 1, enum_names<Enum>[i]);
  throw ArgumentError(fmt::format("{}: found {}, expected one of {}", name, number, expected));
}

/// The number of an enum's value in the interface.
template <NamedEnum Enum>
std::int32_t to_number(Enum value) {
  return static_cast<std::int32_t>(value) + 1;
}

bool to_bool(std::int32_t number, std::string_view name);
Config to_config(const cpnsa_config* config);
void write(const Config& config, cpnsa_config* out);
AttentionOptions to_options(const cpnsa_options* options);
TensorView to_view(const cpnsa_tensor& tensor, const std::string& name);
/// The views of a cpnsa_outputs.
struct Outputs {
  TensorView out;
  std::int32_t* selected;
  BranchTensors log_sum_exp;
};
Outputs to_outputs(const cpnsa_outputs* outputs);
AttentionInputs to_inputs(const cpnsa_tensors* tensors);
AttentionGradients to_gradients(const cpnsa_tensors* tensors);
void write(const Statistics& statistics, cpnsa_statistics* out);

}  // namespace cpnsa::c
