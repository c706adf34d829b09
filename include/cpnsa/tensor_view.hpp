#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "cpnsa/dtype.hpp"

namespace cpnsa {

/// A non-owning, trivially copyable view of a dense C-order tensor in device memory. A default-constructed view stands
/// for "not given". A tensor with zero elements may have any data pointer.
struct TensorView {
  static constexpr int max_rank = 4;

  void* data = nullptr;
  DType dtype = DType::f32;
  int rank = 0;
  std::array<std::int64_t, max_rank> shape{};
  bool given = false;  ///< false only for a default-constructed view

  TensorView() = default;
  TensorView(void* data, DType dtype, std::initializer_list<std::int64_t> dims);

  explicit operator bool() const { return given; }
  std::int64_t elements() const;
  std::size_t bytes() const { return static_cast<std::size_t>(elements()) * size_of(dtype); }
};

/// Type and shape as text: "f32 [700, 4, 16]".
std::string describe(const TensorView&);

/// Throws ArgumentError "<name>: found f32 [3, 4], expected f32 [3, 5]" unless the view has that type and shape.
void expect(const TensorView& view, const std::string& name, DType dtype, std::span<const std::int64_t> shape);

}  // namespace cpnsa
