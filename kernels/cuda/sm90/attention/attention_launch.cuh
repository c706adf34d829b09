#pragma once

#include "kernels/cuda/sm90/attention/attention_tile.cuh"
#include "kernels/cuda/sm90/tensor_map.hpp"
#include "kernels/cuda/sm90/visit_shape.cuh"

namespace cpnsa::cuda::sm90 {

/// Enqueues the persistent kernel over all query tiles of all KV heads.
template <class Shape, class Walk, class Stage>
void launch_attention(const Stage& a, const typename Walk::Parameters& parameters, const Gpu& gpu,
                      cudaStream_t stream) {
  using T = typename Shape::T;
  const Config& config = *a.config;
  const CudaSegmentSchedule& schedule = cuda_schedule(a.queries);
  const typename Shape::Rows rows(static_cast<int>(config.heads_per_group()));
  const ListView<QueryTile> tiles = schedule.tiles(Shape::consumers * rows.queries());
  if (tiles.count == 0) return;
  AttentionProblem<T> problem = attention_problem<T>(a, schedule, tiles);
  problem.out = static_cast<T*>(a.out);
  problem.log_sum_exp = static_cast<float*>(a.log_sum_exp);
  const auto [work, blocks] = persistent_work(a, tiles.count, problem.num_kv_heads * rows.parts(), gpu, stream);
  const CUtensorMap queries = make_tensor_map(
      a.q, a.dtype, rows_layout(schedule.rows, config.num_q_heads, config.head_dim_qk, rows.queries(), rows.heads()));
  auto* const kernel = attention_kernel<Shape, Walk>;
  const std::size_t bytes = SharedMemory<AttentionLayout<Shape>>::bytes;
  allow_shared_memory(kernel, bytes);
  kernel<<<blocks, Shape::threads, bytes, stream>>>(problem, work, queries, parameters);
  check_launch("attention");
}

}  // namespace cpnsa::cuda::sm90
