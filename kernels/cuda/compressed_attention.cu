#include "kernels/cuda/attention_launch.cuh"
#include "kernels/cuda/stage_functions.hpp"
#include "kernels/cuda/summaries.cuh"

namespace cpnsa::cuda {
namespace {

/// The document's summaries in tiles, from the first to the last that the tile's last query sees.
template <class Shape>
struct SummarySource {
  using T = typename Shape::T;
  const T* keys;    ///< summary 0 of the document, KV head of the block
  const T* values;  ///< likewise
  std::int64_t key_stride;
  std::int64_t value_stride;
  SummaryRule rule;
  int position;  ///< of the tile's first query
  int last;      ///< summaries that the tile's last query sees

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

template <class Shape>
struct Summaries {
  using T = typename Shape::T;
  const T* keys;    ///< [C, G, dk]
  const T* values;  ///< [C, G, dv]
  SummaryRule rule;
};

template <class Shape>
__global__ void __launch_bounds__(Shape::threads)
    compressed_attention_kernel(AttentionProblem<typename Shape::T> a, Summaries<Shape> summaries) {
  extern __shared__ __align__(1024) unsigned char shared[];
  // The last tiles see most: they start first.
  const QueryTile tile = a.tiles[gridDim.x - 1 - blockIdx.x];
  const Segment& segment = a.segments[tile.segment];
  const int group = blockIdx.y;
  SummarySource<Shape> source{summaries.keys + (segment.summary * a.groups + group) * a.dk,
                              summaries.values + (segment.summary * a.groups + group) * a.dv,
                              static_cast<std::int64_t>(a.groups) * a.dk,
                              static_cast<std::int64_t>(a.groups) * a.dv,
                              summaries.rule,
                              static_cast<int>(segment.position + tile.row - segment.row),
                              0};
  source.last = source.rule.visible(source.position + tile.rows - 1);
  attend<Shape>(a, tile, group, source, ptx::shared_address(shared));
}

}  // namespace

void compressed_attention(const CompressedAttention& a, cudaStream_t stream) {
  visit_shape<AttentionShape>(a, [&]<class Shape>(std::type_identity<Shape>) {
    using T = typename Shape::T;
    const Summaries<Shape> summaries{static_cast<const T*>(a.keys), static_cast<const T*>(a.values),
                                     SummaryRule(*a.config)};
    launch_attention<Shape>(compressed_attention_kernel<Shape>, a, Shape::shared_bytes, a.config->num_kv_heads, stream,
                            summaries);
  });
}

}  // namespace cpnsa::cuda
