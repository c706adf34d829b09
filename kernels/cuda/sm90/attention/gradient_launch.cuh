#pragma once

// From a backward stage's arguments to a launch of Hopper's kernels.

#include "kernels/cuda/sm90/attention/attention_launch.cuh"
#include "kernels/cuda/sm90/attention/key_gradients.cuh"
#include "kernels/cuda/sm90/attention/query_gradients.cuh"

namespace cpnsa::cuda::sm90 {

/// The shape for the tiles of keys of the schedule.
template <class T, int Dqk, int Dv, int Heads>
using KeyTileShape = KeyGradientShape<T, Dqk, Dv, Heads, TableRow<Dqk, Dv, Heads>::shape.key_gradients.keys>;

/// Maps of the rows of q and dout: boxes of `queries` rows of `heads` heads.
template <class Stage>
QueryGradientMaps row_maps(const Stage& a, int queries, int heads) {
  const Config& config = *a.config;
  const auto map = [&](const void* tensor, std::int64_t dim) {
    return make_tensor_map(tensor, a.dtype, rows_layout(a.queries->rows, config.num_q_heads, dim, queries, heads));
  };
  return {map(a.q, config.head_dim_qk), map(a.gradient.dout, config.head_dim_v)};
}

/// The same in boxes of all heads of one KV head.
template <class Stage>
QueryGradientMaps row_maps(const Stage& a, int queries) {
  return row_maps(a, queries, static_cast<int>(a.config->heads_per_group()));
}

/// Enqueues the persistent kernel over all query tiles of all KV heads.
template <class Shape, class Walk, class Stage>
void launch_query_gradients(const Stage& a, const typename Walk::Parameters& parameters, const Gpu& gpu,
                            cudaStream_t stream) {
  const typename Shape::Rows rows(static_cast<int>(a.config->heads_per_group()));
  const int queries = Shape::consumers * rows.queries();
  const ListView<QueryTile> tiles = cuda_schedule(a.queries).tiles(queries);
  if (tiles.count == 0) return;
  const auto [work, blocks] = persistent_work(a, tiles.count, a.config->num_kv_heads * rows.parts(), gpu, stream);
  auto* const kernel = query_gradients_kernel<Shape, Walk>;
  const std::size_t bytes = SharedMemory<QueryGradientLayout<Shape>>::bytes;
  allow_shared_memory(kernel, bytes);
  kernel<<<blocks, Shape::threads, bytes, stream>>>(gradient_problem<typename Shape::T>(a, tiles), work,
                                                    row_maps(a, queries / Shape::copies, rows.heads()), parameters);
  check_launch("query_gradients");
}

/// Maps of the rows of q and dout for the stages of a walk.
template <class Shape, class Walk, class Stage>
QueryGradientMaps key_row_maps(const Stage& a) {
  const typename Shape::Rows rows(static_cast<int>(a.config->heads_per_group()));
  return row_maps(a, Walk::is_scattered ? 1 : rows.queries(), rows.heads());
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
