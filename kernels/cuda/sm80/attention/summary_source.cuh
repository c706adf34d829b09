#pragma once

// A document's summaries as a key source of a query tile.

#include <cstdint>

#include "kernels/cuda/common/summary_rule.cuh"
#include "kernels/cuda/sm80/attention/attention_tile.cuh"

namespace cpnsa::cuda::sm80 {

template <class Shape>
struct Summaries {
  using T = typename Shape::T;
  const T* keys;    ///< [C, G, d_qk]
  const T* values;  ///< [C, G, d_v]
  SummaryRule rule;
};

/// The document's summaries in tiles, from the first to the last that the tile's last query sees.
template <class Shape>
struct SummarySource {
  using T = typename Shape::T;
  const T* keys;    ///< summary 0 of the document, KV head of the block
  const T* values;  ///< summary 0 of the document, KV head of the block
  std::int64_t key_stride;
  std::int64_t value_stride;
  SummaryRule rule;
  int position;  ///< of the tile's first query
  int last;      ///< summaries that the tile's last query sees

  __device__ SummarySource(const AttentionProblem<T>& a, const QueryTile& tile, const Segment& segment, int group,
                           const Summaries<Shape>& all)
      : keys(all.keys + (segment.summary * a.num_kv_heads + group) * a.d_qk),
        values(all.values + (segment.summary * a.num_kv_heads + group) * a.d_v),
        key_stride(static_cast<std::int64_t>(a.num_kv_heads) * a.d_qk),
        value_stride(static_cast<std::int64_t>(a.num_kv_heads) * a.d_v),
        rule(all.rule),
        position(static_cast<int>(segment.position + tile.row - segment.row)),
        last(rule.visible(position + tile.rows - 1)) {}

  __device__ int tiles() const { return (last + Shape::keys - 1) / Shape::keys; }
  __device__ bool wanted(int tile, int, int end) const { return rule.visible(position + end - 1) > tile * Shape::keys; }
  __device__ const T* key_row(int tile, int r) const {
    const int summary = tile * Shape::keys + r;
    return summary < last ? keys + summary * key_stride : nullptr;
  }
  __device__ const T* value_row(int tile, int r) const {
    const int summary = tile * Shape::keys + r;
    return summary < last ? values + summary * value_stride : nullptr;
  }
  __device__ KeyRange visible(int tile, int query) const {
    return {0, rule.visible(position + query) - tile * Shape::keys};
  }
};

/// The stage's tensors, for CompressedAttention and its backward alike.
template <class Shape, class Stage>
Summaries<Shape> summary_tensors(const Stage& a) {
  using T = typename Shape::T;
  return {static_cast<const T*>(a.keys), static_cast<const T*>(a.values), SummaryRule(*a.config)};
}

}  // namespace cpnsa::cuda::sm80
