#pragma once

#include <array>
#include <cstddef>

#include "src/layer/buffers.hpp"
#include "src/layer/layer_plan.hpp"

namespace cpnsa {

/// Where a backward sums gradients, in the accumulating type: the caller's memory, or the workspace where the caller
/// wants another type.
class GradientSums {
 public:
  /// All but the workspace must outlive it.
  GradientSums(const LayerPlan& layer, Device& device, const AttentionGradients& wanted,
               const BackwardBuffers& workspace);

  /// Everything to zero but the gate's gradients, which nothing is added to.
  void zero(Stream stream) const;
  /// Converts the sums in the workspace to the caller's type, into the caller's memory, in one launch.
  void convert(Stream stream) const;

  KeyValue of(Branch branch) const { return {k[branch], v[branch]}; }

  void* q = nullptr;         ///< [rows, H, d_qk]
  void* q_cmp = nullptr;     ///< [rows, H, d_qk], of the compressed branch: q itself without a query of its own
  void* gate = nullptr;      ///< [rows, H, 3]
  std::array<void*, 3> k{};  ///< [rows, G, d_qk] by branch; the same memory for branches that share the caller's
  std::array<void*, 3> v{};
  AttentionGradients parameters;  ///< those of parameters; its other tensors are unused

 private:
  const LayerPlan& layer_;
  Device& device_;
  const AttentionGradients& wanted_;
  void* own_parameters_ = nullptr;  ///< of all parameters, if they are summed in the workspace
  std::size_t own_parameter_bytes_ = 0;
};

}  // namespace cpnsa
