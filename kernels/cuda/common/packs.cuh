#pragma once

// Loads and stores of several elements at once, and the dispatch from a DType to the layer's types.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <string>
#include <type_traits>

#include "cpnsa/dtype.hpp"
#include "cpnsa/error.hpp"
#include "kernels/cuda/common/numeric.cuh"

namespace cpnsa::cuda {

/// Neighbours that are read and written by one instruction.
template <class T, int Count>
struct alignas(sizeof(T) * Count) Pack {
  T item[Count];
};

/// Elements of the layer's types in 16 bytes; head dimensions are multiples of it.
inline constexpr int pack_items = 8;
template <class T>
using LayerPack = Pack<T, pack_items>;

template <class T>
__device__ __forceinline__ LayerPack<T> load_pack(const T* row, int pack) {
  return reinterpret_cast<const LayerPack<T>*>(row)[pack];
}

template <class T>
__device__ __forceinline__ void store_pack(T* row, int pack, const LayerPack<T>& values) {
  reinterpret_cast<LayerPack<T>*>(row)[pack] = values;
}

/// Calls function(std::type_identity<T>{}) with the layer's type.
template <class Function>
void visit_type(DType dtype, Function&& function) {
  switch (dtype) {
    case DType::bf16: return function(std::type_identity<__nv_bfloat16>{});
    case DType::f16: return function(std::type_identity<__half>{});
    default:
      throw UnsupportedError("cuda device: found dtype " + std::string(name_of(dtype)) +
                             ", supported are bf16 and f16");
  }
}

}  // namespace cpnsa::cuda
