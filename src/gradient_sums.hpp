#pragma once

#include <array>
#include <cstddef>

#include "src/attention_impl.hpp"

namespace cpnsa {

/// Where a backward sums gradients, in the accumulating type: the caller's memory, or the workspace where the caller
/// wants another type.
class GradientSums {
 public:
  GradientSums(const Layer& attention, const AttentionGradients& wanted, const BackwardBuffers& workspace);

  /// Everything to zero but the gate's gradients, which nothing is added to.
  void zero(Stream stream) const;
  /// What is summed in the workspace, to the caller in the type that it wants; one launch.
  void convert(Stream stream) const;

  void* q = nullptr;         ///< [rows, H, d_qk]
  void* gate = nullptr;      ///< [rows, H, 3]
  std::array<void*, 3> k{};  ///< [rows, G, d_qk] by branch; the same memory for branches that share the caller's
  std::array<void*, 3> v{};
  AttentionGradients parameters;  ///< of it the compressors' alone

 private:
  const Layer& a_;
  const AttentionGradients& wanted_;
  void* own_parameters_ = nullptr;  ///< if they are in the workspace: all of them
  std::size_t own_parameter_bytes_ = 0;
};

}  // namespace cpnsa
