#pragma once

#include "kernels/cuda/common/launch.cuh"
#include "kernels/cuda/sm90/attention/attention_tile.cuh"
#include "kernels/cuda/sm90/stages.hpp"
#include "kernels/cuda/sm90/tensor_map.hpp"

namespace cpnsa::cuda::sm90 {

/// Calls function(std::type_identity<Shape<T, Dk, Dv>>{}) for a configuration that serves_attention().
template <template <class, int, int> class Shape, class Function>
void visit_shape(const OpContext& a, Function&& function) {
  const std::int64_t dk = a.config->head_dim_qk;
  visit_type(a.dtype, [&]<class T>(std::type_identity<T>) {
    if (dk == 64) return function(std::type_identity<Shape<T, 64, 64>>{});
    if (dk == 128) return function(std::type_identity<Shape<T, 128, 128>>{});
    return function(std::type_identity<Shape<T, 192, 128>>{});
  });
}

/// Enqueues the persistent kernel over all query tiles of all KV heads.
template <class Shape, class Walk, class Stage>
void launch_attention(const Stage& a, const typename Walk::Parameters& parameters, cudaStream_t stream) {
  using T = typename Shape::T;
  const Config& config = *a.config;
  const CudaSegmentSchedule& schedule = cuda_schedule(a.queries);
  const ListView<QueryTile> tiles = schedule.tiles(Shape::queries);
  if (tiles.count == 0) return;
  AttentionProblem<T> problem = attention_problem<T>(a, schedule, tiles);
  problem.out = static_cast<T*>(a.out);
  problem.log_sum_exp = static_cast<float*>(a.log_sum_exp);
  const auto [work, blocks] = persistent_work(a, tiles.count, problem.groups, stream);
  const CUtensorMap queries = make_tensor_map(
      a.q, a.dtype,
      rows_layout(schedule.rows, config.num_q_heads, config.head_dim_qk, Shape::own_queries, Shape::heads));
  auto* const kernel = attention_kernel<Shape, Walk>;
  const std::size_t bytes = Shape::shared_bytes + 1024;  // room to align
  allow_shared_memory(kernel, bytes);
  kernel<<<blocks, Shape::threads, bytes, stream>>>(problem, work, queries, parameters);
  check_launch("attention_sm90");
}

}  // namespace cpnsa::cuda::sm90
