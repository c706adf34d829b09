#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "cpnsa/names.hpp"

namespace cpnsa {

/// Element type of a tensor. The tensors of a layer have one type; sums are accumulated in accumulate_dtype().
enum class DType : std::int32_t { f64, f32, bf16, f16 };
constexpr auto names_of(DType) {
  return std::to_array<std::string_view>({"f64", "f32", "bf16", "f16"});
}

/// Bytes of one element.
constexpr std::size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f64: return 8;
    case DType::f32: return 4;
    case DType::bf16:
    case DType::f16: return 2;
  }
  return 0;
}

/// The type of log-sum-exps, scores and all reductions of gradients: float64 for float64 layers, float32 otherwise.
constexpr DType accumulate_dtype(DType dtype) {
  return dtype == DType::f64 ? DType::f64 : DType::f32;
}

}  // namespace cpnsa
