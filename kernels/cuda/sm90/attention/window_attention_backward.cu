#include "kernels/cuda/sm90/attention/gradient_launch.cuh"
#include "kernels/cuda/sm90/attention/window_source.cuh"
#include "kernels/cuda/sm90/run_op.hpp"

namespace cpnsa::cuda::sm90 {
namespace {

/// The queries of a segment that are within a window of a tile's keys.
struct SegmentQueries {
  int first_key;  ///< position of the tile's first row
  KeyRange keys;  ///< rows of the tile that are the segment's
  int row;        ///< local, of the first query
  int position;   ///< position of the first query
  int queries;

  __device__ SegmentQueries(const WindowKeyTile& tile, const Segment& segment, int window) {
    const int own = static_cast<int>(segment.position);
    if (tile.halo) {
      first_key = static_cast<int>(segment.position - segment.halo_rows + tile.row - segment.halo_row);
      keys = {max(0, static_cast<int>(segment.halo_row - tile.row)),
              min(tile.rows, static_cast<int>(segment.halo_row + segment.halo_rows - tile.row))};
    } else {
      first_key = static_cast<int>(segment.position + tile.row - segment.row);
      keys = {0, tile.rows};
    }
    position = max(first_key + keys.begin, own);
    // Neither sum overflows: a window is at most 2^30, and so is a position.
    queries = min(first_key + keys.end - 1 + window, own + static_cast<int>(segment.rows)) - position;
    row = static_cast<int>(segment.row) + position - own;
  }
};

/// The queries that see a key tile, segment by segment.
template <class Shape>
class WindowQueries {
 public:
  static constexpr bool is_scattered = false;
  static constexpr bool is_ordered = false;

  struct Parameters : QueryGradientMaps, WindowMaps {
    int window;
    int tile_count;
    const WindowKeyTile* tiles;
    const std::int32_t* segments;  ///< indices of segments, those of a tile from its segment_begin on
    float* dk;                     ///< [rows, G, d_qk]
    float* dv;                     ///< [rows, G, d_v]
    float* dhalo_k;                ///< [halo rows, G, d_qk]
    float* dhalo_v;                ///< [halo rows, G, d_v]
  };
  struct Plan : KeyPlan {
    WindowKeyTile tile;
  };

  template <class T>
  __device__ static Plan plan(const GradientProblem<T>& a, const Parameters& parameters, unsigned ticket) {
    const typename Shape::Rows rows(a.heads_per_group);
    Plan plan{};
    plan.tile = parameters.tiles[ticket % parameters.tile_count];
    const WindowKeyTile& tile = plan.tile;
    plan.keys = tile.rows;
    plan.group = static_cast<int>(ticket / parameters.tile_count);
    plan.map = tile.halo;
    plan.head = plan.group;
    plan.row = static_cast<int>(tile.row);
    plan.dkey_step = a.num_kv_heads * a.d_qk;
    plan.dvalue_step = a.num_kv_heads * a.d_v;
    plan.dkeys = (tile.halo ? parameters.dhalo_k : parameters.dk) + (tile.row * a.num_kv_heads + plan.group) * a.d_qk;
    plan.dvalues = (tile.halo ? parameters.dhalo_v : parameters.dv) + (tile.row * a.num_kv_heads + plan.group) * a.d_v;
    for (int i = tile.segment_begin; i < tile.segment_end; ++i) {
      const SegmentQueries some(tile, a.segments[parameters.segments[i]], parameters.window);
      plan.stages += (max(0, some.queries) + rows.queries() - 1) / rows.queries();
    }
    return plan;
  }

  template <class T>
  __device__ WindowQueries(const GradientProblem<T>& a, const Parameters& parameters, const Plan& plan)
      : rows_(a.heads_per_group),
        segments_(a.segments),
        tile_(plan.tile),
        next_(parameters.segments + plan.tile.segment_begin),
        window_(parameters.window) {}

  __device__ void next() {
    left_ -= rows_.queries();
    row_ += rows_.queries();
    past_ += rows_.queries();
    while (left_ <= 0) {
      const SegmentQueries some(tile_, segments_[*next_++], window_);
      left_ = some.queries;
      row_ = some.row;
      past_ = some.position + 1 - some.first_key;
      keys_ = some.keys;
    }
  }
  __device__ int row(int query) const { return row_ + query; }
  __device__ KeyRange visible(int query) const {
    if (query >= left_) return {0, 0};
    return {max(keys_.begin, past_ + query - window_), min(keys_.end, past_ + query)};
  }

 private:
  typename Shape::Rows rows_;
  const Segment* segments_;
  const WindowKeyTile& tile_;
  const std::int32_t* next_;  // segment
  int window_;
  int left_ = 0;  // queries from the stage's first on, in the segment
  int row_ = 0;
  int past_ = 0;  // one past the last key of the tile that the stage's first query sees
  KeyRange keys_{};
};

}  // namespace

template <>
void run_op(const WindowAttentionBackward& a, const Gpu& gpu, cudaStream_t stream) {
  const int window = window_of(*a.config);
  visit_dense_shape<QueryGradientShape>(a, [&]<class Shape>(std::type_identity<Shape>) {
    using Walk = WindowWalk<Shape::keys>;
    launch_query_gradients<Shape, Walk>(a, typename Walk::Parameters{window_maps(a, Shape::keys), window}, gpu, stream);
  });
  visit_dense_shape<KeyTileShape>(a, [&]<class Shape>(std::type_identity<Shape>) {
    using Walk = WindowQueries<Shape>;
    const CudaSegmentSchedule& schedule = cuda_schedule(a.queries);
    const ListView<WindowKeyTile> tiles = schedule.window_key_tiles();
    const typename Walk::Parameters parameters{key_row_maps<Shape, Walk>(a),
                                               window_maps(a, Shape::keys),
                                               window,
                                               static_cast<int>(tiles.count),
                                               tiles.device,
                                               schedule.window_key_segments(),
                                               static_cast<float*>(a.dk),
                                               static_cast<float*>(a.dv),
                                               static_cast<float*>(a.dhalo_k),
                                               static_cast<float*>(a.dhalo_v)};
    launch_key_gradients<Shape, Walk>(a, parameters, tiles.count * a.config->num_kv_heads, stream);
  });
}

}  // namespace cpnsa::cuda::sm90
