#pragma once

// From a stage's arguments to a launch of the portable kernels: the compile-time shape that fits, the grid, the shared
// memory.

#include <algorithm>
#include <type_traits>

#include "cpnsa/error.hpp"
#include "kernels/cuda/attention_tile.cuh"
#include "kernels/cuda/check.hpp"

namespace cpnsa::cuda {

/// Calls function(std::type_identity<T>{}) with the layer's type.
template <class Function>
void visit_type(DType dtype, Function&& function) {
  switch (dtype) {
    case DType::bf16: return function(std::type_identity<__nv_bfloat16>{});
    case DType::f16: return function(std::type_identity<__half>{});
    default: break;
  }
  throw UnsupportedError("cuda device: found dtype " + std::string(name_of(dtype)) + ", supported are bf16 and f16");
}

/// Calls function(std::type_identity<Shape<T, Dk, Dv>>{}) with the smallest head dimensions that hold the layer's.
template <template <class, int, int> class Shape, class Function>
void visit_shape(const StageContext& a, Function&& function) {
  const std::int64_t dk = a.config->head_dim_qk, dv = a.config->head_dim_v;
  visit_type(a.dtype, [&]<class T>(std::type_identity<T>) {
    if (dk <= 64 && dv <= 64) return function(std::type_identity<Shape<T, 64, 64>>{});
    if (dk <= 128 && dv <= 128) return function(std::type_identity<Shape<T, 128, 128>>{});
    if (dk <= 192 && dv <= 128) return function(std::type_identity<Shape<T, 192, 128>>{});
    return function(std::type_identity<Shape<T, 256, 256>>{});
  });
}

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
  problem.heads = static_cast<int>(config.num_q_heads);
  problem.groups = static_cast<int>(config.num_kv_heads);
  problem.heads_per_group = static_cast<int>(config.heads_per_group());
  problem.dk = static_cast<int>(config.head_dim_qk);
  problem.dv = static_cast<int>(config.head_dim_v);
  problem.scale_log2 = static_cast<float>(config.scale() * 1.44269504088896340736);
  return problem;
}

/// Enqueues kernel(problem, extras...) with a thread block for each query tile of each of `groups` KV heads.
template <class Shape, class Kernel, class Stage, class... Extras>
void launch_attention(Kernel* kernel, const Stage& a, std::size_t shared_bytes, std::int64_t groups,
                      cudaStream_t stream, const Extras&... extras) {
  using T = typename Shape::T;
  const CudaSegmentSchedule& schedule = cuda_schedule(a.queries);
  const ListView<QueryTile> tiles = schedule.tiles(queries_of(*a.config, Shape::rows));
  if (tiles.count == 0 || groups == 0) return;
  AttentionProblem<T> problem = attention_problem<T>(a, schedule, tiles);
  problem.out = static_cast<T*>(a.out);
  problem.log_sum_exp = static_cast<float*>(a.log_sum_exp);
  allow_shared_memory(kernel, shared_bytes);
  const dim3 grid(static_cast<unsigned>(tiles.count), static_cast<unsigned>(groups));
  kernel<<<grid, Shape::threads, shared_bytes, stream>>>(problem, extras...);
  check_launch("attention");
}

}  // namespace cpnsa::cuda
