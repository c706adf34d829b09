#pragma once

// From a backward stage's arguments to a launch of Hopper's kernels.

#include "kernels/cuda/sm90/attention/attention_launch.cuh"
#include "kernels/cuda/sm90/attention/key_gradients.cuh"
#include "kernels/cuda/sm90/attention/query_gradients.cuh"

namespace cpnsa::cuda::sm90 {

/// The shape for tiles of keys_per_tile keys.
template <class T, int Dqk, int Dv, int Heads>
using KeyTileShape = KeyGradientShape<T, Dqk, Dv, Heads, keys_per_tile>;

/// Maps of the rows of q and dout: boxes of `queries` rows of one KV head's heads.
template <class Stage>
QueryGradientMaps row_maps(const Stage& a, int queries) {
  const Config& config = *a.config;
  const auto map = [&](const void* tensor, std::int64_t dim) {
    return make_tensor_map(
        tensor, a.dtype,
        rows_layout(a.queries->rows, config.num_q_heads, dim, queries, static_cast<int>(config.heads_per_group())));
  };
  return {map(a.q, config.head_dim_qk), map(a.gradient.dout, config.head_dim_v)};
}

/// Enqueues the persistent kernel over all query tiles of all KV heads.
template <class Shape, class Walk, class Stage>
void launch_query_gradients(const Stage& a, const typename Walk::Parameters& parameters, const Gpu& gpu,
                            cudaStream_t stream) {
  const ListView<QueryTile> tiles = cuda_schedule(a.queries).tiles(Shape::queries);
  if (tiles.count == 0) return;
  const auto [work, blocks] = persistent_work(a, tiles.count, a.config->num_kv_heads, gpu, stream);
  auto* const kernel = query_gradients_kernel<Shape, Walk>;
  const std::size_t bytes = SharedMemory<QueryGradientLayout<Shape>>::bytes;
  allow_shared_memory(kernel, bytes);
  kernel<<<blocks, Shape::threads, bytes, stream>>>(gradient_problem<typename Shape::T>(a, tiles), work,
                                                    row_maps(a, Shape::queries), parameters);
  check_launch("query_gradients");
}

/// Enqueues a thread block for each of `plans` plans.
template <class Shape, class Walk, class Stage>
void launch_key_gradients(const Stage& a, const typename Walk::Parameters& parameters, std::int64_t plans,
                          cudaStream_t stream) {
  if (plans == 0) return;
  auto* const kernel = key_gradients_kernel<Shape, Walk>;
  const std::size_t bytes = SharedMemory<KeyGradientLayout<Shape>>::bytes;
  allow_shared_memory(kernel, bytes);
  kernel<<<static_cast<unsigned>(plans), Shape::threads, bytes, stream>>>(gradient_problem<typename Shape::T>(a, {}),
                                                                          parameters);
  check_launch("key_gradients");
}

}  // namespace cpnsa::cuda::sm90
