#include "kernels/cuda/attention_launch_sm90.cuh"
#include "kernels/cuda/summaries.cuh"

namespace cpnsa::cuda::sm90 {
namespace {

/// The document's summaries from the first on.
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
        tiles((rule.visible(position + tile.rows - 1) + 127) / 128) {}

  __device__ Place place(int tile) const { return {0, first_summary + tile * 128}; }
  __device__ KeyRange visible(int query) const { return {0, rule.visible(position + query)}; }
};

}  // namespace

void compressed_attention(const CompressedAttention& a, cudaStream_t stream) {
  visit_shape<AttentionShape>(a, [&]<class Shape>(std::type_identity<Shape>) {
    const Config& config = *a.config;
    std::int64_t summaries = 1;  // a map needs a row, even where no summary is read
    for (const Segment& segment : a.queries->segments)
      summaries = std::max(summaries, segment.summary + segment.summaries);
    const SummaryWalk::Parameters parameters{
        {make_tensor_map(a.keys, a.dtype, rows_layout(summaries, config.num_kv_heads, Shape::dk, Shape::keys, 1))},
        {make_tensor_map(a.values, a.dtype, rows_layout(summaries, config.num_kv_heads, Shape::dv, Shape::keys, 1))},
        SummaryRule(config)};
    launch_attention<Shape, SummaryWalk>(a, parameters, stream);
  });
}

}  // namespace cpnsa::cuda::sm90
