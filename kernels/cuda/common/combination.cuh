#pragma once

// The gated sum of the branches' outputs: a separate op, or the last step of the selected branch.

#include <cstdint>

#include "cpnsa/ops.hpp"
#include "kernels/cuda/common/gate.cuh"
#include "kernels/cuda/common/packs.cuh"

namespace cpnsa::cuda {

/// A (row, head)'s three gates, applied.
struct Gates {
  float cmp, slc, win;
};

/// All but o_slc.
template <class T>
struct Combination {
  GateKind kind;
  const T* gate;   ///< [rows H, 3]
  const T* o_cmp;  ///< [rows H, d_v]
  const T* o_win;  ///< [rows H, d_v]
  T* out;          ///< [rows H, d_v]; null where there is nothing to combine

  Combination() = default;
  explicit Combination(const CombineBranches& a)
      : kind(a.config->gate),
        gate(static_cast<const T*>(a.gate)),
        o_cmp(static_cast<const T*>(a.o_cmp)),
        o_win(static_cast<const T*>(a.o_win)),
        out(static_cast<T*>(a.out)) {}

  __device__ __forceinline__ Gates gates(std::int64_t head_row) const {
    const T* const g = gate + 3 * head_row;
    return {gate_value(kind, widen(g[0])), gate_value(kind, widen(g[1])), gate_value(kind, widen(g[2]))};
  }
};

/// out = g0 o_cmp + g1 o_slc + g2 o_win of eight channels.
template <class T>
__device__ __forceinline__ LayerPack<T> combined(const Gates& g, const LayerPack<T>& cmp, const LayerPack<T>& slc,
                                                 const LayerPack<T>& win) {
  LayerPack<T> sum;
#pragma unroll
  for (int i = 0; i < pack_items; ++i)
    sum.item[i] = narrow<T>(g.cmp * widen(cmp.item[i]) + g.slc * widen(slc.item[i]) + g.win * widen(win.item[i]));
  return sum;
}

}  // namespace cpnsa::cuda
