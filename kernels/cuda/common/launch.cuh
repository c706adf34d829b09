#pragma once

// From a stage's arguments to those of its kernels.

#include "kernels/cuda/common/check.hpp"
#include "kernels/cuda/common/packs.cuh"
#include "kernels/cuda/common/problem.cuh"

namespace cpnsa::cuda {

/// Lets a kernel have more shared memory than the default 48 KiB.
template <class Kernel>
void allow_shared_memory(Kernel* kernel, std::size_t bytes) {
  if (bytes > 48 * 1024)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
          "cudaFuncSetAttribute");
}

/// The stage's arguments that all branches share.
template <class T, class Stage>
AttentionProblem<T> attention_problem(const Stage& a, const CudaSegmentSchedule& schedule, ListView<QueryTile> tiles) {
  const Config& config = *a.config;
  AttentionProblem<T> problem{};
  problem.segments = schedule.device_segments();
  problem.tiles = tiles.device;
  problem.q = static_cast<const T*>(a.q);
  problem.num_q_heads = static_cast<int>(config.num_q_heads);
  problem.num_kv_heads = static_cast<int>(config.num_kv_heads);
  problem.heads_per_group = static_cast<int>(config.heads_per_group());
  problem.d_qk = static_cast<int>(config.head_dim_qk);
  problem.d_v = static_cast<int>(config.head_dim_v);
  problem.scale_log2 = static_cast<float>(config.scale() * 1.44269504088896340736);
  return problem;
}

template <class T, class Stage>
GradientProblem<T> gradient_problem(const Stage& a, ListView<QueryTile> tiles) {
  GradientProblem<T> problem{};
  static_cast<AttentionProblem<T>&>(problem) = attention_problem<T>(a, cuda_schedule(a.queries), tiles);
  problem.log_sum_exp = static_cast<float*>(const_cast<void*>(a.gradient.log_sum_exp));
  problem.dout = static_cast<const T*>(a.gradient.dout);
  problem.weights = static_cast<const float*>(a.gradient.weights);
  problem.deltas = static_cast<const float*>(a.gradient.deltas);
  problem.dq = static_cast<float*>(a.dq);
  problem.scale = static_cast<float>(a.config->scale());
  return problem;
}

}  // namespace cpnsa::cuda
