#pragma once

// From a backward stage's arguments to a launch of the portable kernels.

#include "kernels/cuda/sm80/attention/attention_launch.cuh"
#include "kernels/cuda/sm80/attention/key_gradients.cuh"
#include "kernels/cuda/sm80/attention/query_gradients.cuh"

namespace cpnsa::cuda::sm80 {

/// Enqueues kernel(problem, extras...) with a thread block for each query tile of each slice of the query heads of
/// `groups` KV heads.
template <class Shape, class Kernel, class Stage, class... Extras>
void launch_query_gradients(Kernel* kernel, const Stage& a, std::size_t shared_bytes, std::int64_t groups,
                            cudaStream_t stream, const Extras&... extras) {
  const ListView<QueryTile> tiles = cuda_schedule(a.queries).tiles(queries_per_tile(*a.config));
  if (tiles.count == 0 || groups == 0) return;
  allow_shared_memory(kernel, shared_bytes);
  const std::int64_t slices = groups * num_head_slices(a.config->heads_per_group());
  const dim3 grid(static_cast<unsigned>(tiles.count), static_cast<unsigned>(slices));
  kernel<<<grid, Shape::threads, shared_bytes, stream>>>(gradient_problem<typename Shape::T>(a, tiles), extras...);
  check_launch("query gradients");
}

/// Enqueues kernel(problem, extras...) on a grid of key tiles.
template <class Shape, class Kernel, class Stage, class... Extras>
void launch_key_gradients(Kernel* kernel, const Stage& a, dim3 grid, cudaStream_t stream, const Extras&... extras) {
  if (grid.x == 0 || grid.y == 0) return;
  allow_shared_memory(kernel, Shape::shared_bytes);
  kernel<<<grid, Shape::threads, Shape::shared_bytes, stream>>>(gradient_problem<typename Shape::T>(a, {}), extras...);
  check_launch("key gradients");
}

}  // namespace cpnsa::cuda::sm80
