#pragma once

#include "kernels/cuda/common/summary_rule.cuh"
#include "kernels/cuda/sm90/attention/attention_tile.cuh"
#include "kernels/cuda/sm90/tensor_map.hpp"

namespace cpnsa::cuda::sm90 {

/// A walk over the document's summaries from the first on, in tiles of `Keys`.
template <int Keys>
struct SummaryWalk {
  struct Parameters {
    CUtensorMap keys[1];
    CUtensorMap values[1];
    SummaryRule rule;
  };

  SummaryRule rule;
  int first_summary;
  int position;  ///< of the tile's first query
  int tiles;

  __device__ SummaryWalk(const Parameters& parameters, const Segment& segment, const QueryTile& tile)
      : rule(parameters.rule),
        first_summary(static_cast<int>(segment.summary)),
        position(static_cast<int>(segment.position + tile.row - segment.row)),
        tiles((rule.visible(position + tile.rows - 1) + Keys - 1) / Keys) {}

  __device__ TileLocation location(int tile) const { return {0, first_summary + tile * Keys}; }
  __device__ KeyRange visible(int query) const { return {0, rule.visible(position + query)}; }
};

/// Maps of the summaries in boxes of `keys` of one KV head, of a stage that has them as `keys` and `values`.
template <class Stage>
std::pair<CUtensorMap, CUtensorMap> summary_maps(const Stage& a, int keys) {
  const Config& config = *a.config;
  std::int64_t summaries = 1;  // a map needs a row, even where no summary is read
  for (const Segment& segment : a.queries->segments)
    summaries = std::max(summaries, segment.summary + segment.summaries);
  const auto map = [&](const void* tensor, std::int64_t dim) {
    return make_tensor_map(tensor, a.dtype, rows_layout(summaries, config.num_kv_heads, dim, keys, 1));
  };
  return {map(a.keys, config.head_dim_qk), map(a.values, config.head_dim_v)};
}

}  // namespace cpnsa::cuda::sm90
