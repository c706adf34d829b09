#pragma once

// The tensors of a call, from Python's sequences to the library's structs.

#include <fmt/format.h>

#include <array>
#include <cstddef>
#include <string>

#include "cpnsa/error.hpp"
#include "cpnsa/schema.hpp"
#include "src/tensor.hpp"

namespace cpnsa::python {

/// Python hands over tensors, or gradients, as one sequence in the order of schema::tensors; None is "not given".
inline constexpr std::size_t tensor_count = schema::tensors.size();

template <class Tensors>
std::array<TensorView*, tensor_count> members_of(Tensors& to) {
  std::array<TensorView*, tensor_count> members{};
  auto member = members.begin();
  schema::for_each_tensor([&](const schema::Tensor&, TensorView& view) { *member++ = &view; }, to);
  return members;
}

// The names in messages, which outlive every call.
inline constexpr auto gradient_names = [] {
  std::array<schema::Name, tensor_count> names;
  for (std::size_t i = 0; i < names.size(); ++i) names[i] = schema::tensors[i].gradient_name();
  return names;
}();

inline const char* name_at(std::size_t i, bool gradient) {
  return gradient ? gradient_names[i].c_str() : schema::tensors[i].name.c_str();
}

/// The index of the `i`th flat tensor among the `found` tensors given: -1 for none, `i` itself without indices.
inline Py_ssize_t index_of(nb::handle indices, std::size_t i, std::size_t found) {
  if (indices.is_none()) return static_cast<Py_ssize_t>(i);
  const auto index = nb::cast<Py_ssize_t>(indices[i]);
  if (index >= static_cast<Py_ssize_t>(found))
    throw ArgumentError(fmt::format("indices: found {}, expected less than the {} tensors given", index, found));
  return index;
}

/// `tensors` is flat, or holds each different tensor once; `indices` then says which of them each flat one is.
template <class Tensors>
Tensors views_of(nb::sequence tensors, nb::handle indices, bool gradients, const Device& device, Owners& owners) {
  const std::size_t found = nb::len(tensors);
  if (const std::size_t count = indices.is_none() ? found : nb::len(indices); count != tensor_count)
    throw ArgumentError(fmt::format("tensors: found {}, expected {}", count, tensor_count));
  Tensors result;
  const auto to = members_of(result);
  for (std::size_t i = 0; i < to.size(); ++i)
    if (const Py_ssize_t index = index_of(indices, i, found); index >= 0)
      *to[i] = view_of(tensors[index], name_at(i, gradients), device, gradients, owners);
  return result;
}

/// Runs `read`, which turns arguments into views; returns what is wrong with them. The other ranks make the call all
/// the same, and are to learn of it.
template <class Read>
std::string problem_of(const Read& read) {
  try {
    read();
    return {};
  } catch (const Error& error) {
    return error.what();
  } catch (const nb::python_error& error) {
    return error.what();
  }
}

}  // namespace cpnsa::python
