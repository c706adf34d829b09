#pragma once

// From a stage's arguments to a launch of the portable kernels: the compile-time shape that fits, the grid, the shared
// memory.

#include <type_traits>

#include "kernels/cuda/common/launch.cuh"
#include "kernels/cuda/sm80/attention/attention_tile.cuh"
#include "kernels/cuda/sm80/shapes.hpp"

namespace cpnsa::cuda::sm80 {

/// Calls function(std::type_identity<Shape<T, Dqk, Dv>>{}) with the smallest head dimensions that hold the layer's.
template <template <class, int, int> class Shape, class Function>
void visit_shape(const OpContext& a, Function&& function) {
  const std::int64_t d_qk = a.config->head_dim_qk, d_v = a.config->head_dim_v;
  visit_type(a.dtype, [&]<class T>(std::type_identity<T>) {
    if (d_qk <= 64 && d_v <= 64) return function(std::type_identity<Shape<T, 64, 64>>{});
    if (d_qk <= 128 && d_v <= 128) return function(std::type_identity<Shape<T, 128, 128>>{});
    if (d_qk <= 192 && d_v <= 128) return function(std::type_identity<Shape<T, 192, 128>>{});
    return function(std::type_identity<Shape<T, 256, 256>>{});
  });
}

/// Enqueues kernel(problem, extras...) with a thread block for each query tile of each slice of the query heads of
/// `groups` KV heads.
template <class Shape, class Kernel, class Stage, class... Extras>
void launch_attention(Kernel* kernel, const Stage& a, std::size_t shared_bytes, std::int64_t groups,
                      cudaStream_t stream, const Extras&... extras) {
  using T = typename Shape::T;
  const CudaSegmentSchedule& schedule = cuda_schedule(a.queries);
  const ListView<QueryTile> tiles = schedule.tiles(queries_per_tile(*a.config));
  if (tiles.count == 0 || groups == 0) return;
  AttentionProblem<T> problem = attention_problem<T>(a, schedule, tiles);
  problem.out = static_cast<T*>(a.out);
  problem.log_sum_exp = static_cast<float*>(a.log_sum_exp);
  allow_shared_memory(kernel, shared_bytes);
  const std::int64_t slices = groups * num_head_slices(a.config->heads_per_group());
  const dim3 grid(static_cast<unsigned>(tiles.count), static_cast<unsigned>(slices));
  kernel<<<grid, Shape::threads, shared_bytes, stream>>>(problem, extras...);
  check_launch("attention");
}

}  // namespace cpnsa::cuda::sm80
