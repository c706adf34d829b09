#include "kernels/cuda/schedule/key_tiles.hpp"
#include "kernels/cuda/sm80/attention/gradient_launch.cuh"
#include "kernels/cuda/sm80/attention/row_cursor.cuh"
#include "kernels/cuda/sm80/attention/window_source.cuh"
#include "kernels/cuda/sm80/run_op.hpp"

namespace cpnsa::cuda::sm80 {
namespace {

template <class Shape>
__global__ void __launch_bounds__(Shape::threads, 2)
    window_query_gradients_kernel(GradientProblem<typename Shape::T> a, WindowTensors<Shape> tensors) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const QueryTile tile = a.tiles[blockIdx.x];
  const HeadSlice slice(a, blockIdx.y);
  const WindowSource<Shape> source(a, tile, a.segments[tile.segment], slice.group, tensors);
  add_query_gradients<Shape>(a, tile, slice, source, ptx::shared_address(shared));
}

/// The rows that see a key tile: of each of its segments those that are within a window of its keys.
template <class Shape>
class WindowRows {
 public:
  __device__ WindowRows(const AttentionProblem<typename Shape::T>& a, const WindowKeyTile& tile,
                        const std::int32_t* segments, int group, int window)
      : segments_(a.segments),
        heads_(a.num_q_heads),
        tile_(tile),
        next_segment_(segments + tile.segment_begin),
        last_segment_(segments + tile.segment_end),
        window_(window),
        first_head_(group * a.heads_per_group),
        rows_(a.heads_per_group) {}

  __device__ bool next() {
    rows_.advance(Shape::rows);
    while (rows_.done()) {
      if (next_segment_ == last_segment_) return false;
      enter(segments_[*next_segment_++]);
    }
    return true;
  }
  __device__ std::int64_t head_row(int index) const {
    const int query = rows_.query_of(index);
    return query < rows_.end ? (first_row_ + query) * heads_ + first_head_ + rows_.head_of(index) : -1;
  }
  __device__ KeyRange visible(int index) const {
    const int past = first_query_ + rows_.query_of(index) + 1 - first_key_;
    return {max(keys_.begin, past - window_), min(keys_.end, past)};
  }

 private:
  __device__ void enter(const Segment& segment) {
    const std::int64_t position = segment.position;
    if (tile_.halo) {
      first_key_ = static_cast<int>(position - segment.halo_rows + tile_.row - segment.halo_row);
      keys_ = {static_cast<int>(max(std::int64_t{0}, segment.halo_row - tile_.row)),
               static_cast<int>(
                   min(static_cast<std::int64_t>(tile_.rows), segment.halo_row + segment.halo_rows - tile_.row))};
    } else {
      first_key_ = static_cast<int>(position + tile_.row - segment.row);
      keys_ = {0, tile_.rows};
    }
    const std::int64_t first = max(static_cast<std::int64_t>(first_key_) + keys_.begin, position);
    const std::int64_t last =
        min(static_cast<std::int64_t>(first_key_) + keys_.end - 1 + window_, position + segment.rows);
    first_query_ = static_cast<int>(first);
    first_row_ = segment.row + first - position;
    rows_.start(0, static_cast<int>(last - first));
  }

  const Segment* segments_;
  int heads_;
  WindowKeyTile tile_;
  const std::int32_t* next_segment_;
  const std::int32_t* last_segment_;
  int window_;
  int first_head_;
  RowCursor rows_;  // of the segment's queries from first_query_ on
  // The current segment:
  int first_key_ = 0;           // position of the tile's first row
  KeyRange keys_{};             // rows of the tile that are the segment's
  int first_query_ = 0;         // position of the first query that sees the tile
  std::int64_t first_row_ = 0;  // and its local row
};

struct WindowGradients {
  const WindowKeyTile* tiles;
  const std::int32_t* segments;  ///< indices of segments, those of a tile from its segment_begin on
  float* dk;                     ///< [rows, G, d_qk]
  float* dv;                     ///< [rows, G, d_v]
  float* dhalo_k;                ///< [halo rows, G, d_qk]
  float* dhalo_v;                ///< [halo rows, G, d_v]
};

template <class Shape>
__global__ void __launch_bounds__(Shape::threads)
    window_key_gradients_kernel(GradientProblem<typename Shape::T> a, WindowTensors<Shape> tensors,
                                WindowGradients gradients) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const WindowKeyTile& tile = gradients.tiles[blockIdx.x];
  const int group = blockIdx.y;
  const auto row = [&](auto* own, auto* halo, int dim, int r) -> decltype(own) {
    if (r >= tile.rows) return nullptr;
    return (tile.halo ? halo : own) + ((tile.row + r) * a.num_kv_heads + group) * dim;
  };
  KeyGradients<Shape> keys(a, shared);
  keys.load_keys([&](int r) { return row(tensors.k, tensors.halo_k, a.d_qk, r); },
                 [&](int r) { return row(tensors.v, tensors.halo_v, a.d_v, r); });
  keys.template walk<WindowRows<Shape>>(a, tile, gradients.segments, group, tensors.window);
  keys.add_to([&](int r) { return row(gradients.dk, gradients.dhalo_k, a.d_qk, r); },
              [&](int r) { return row(gradients.dv, gradients.dhalo_v, a.d_v, r); });
}

}  // namespace

template <>
void run_op(const WindowAttentionBackward& a, cudaStream_t stream) {
  visit_shape<QueryGradientShape>(a, [&]<class Shape>(std::type_identity<Shape>) {
    launch_query_gradients<Shape>(window_query_gradients_kernel<Shape>, a, Shape::shared_bytes, a.config->num_kv_heads,
                                  stream, window_tensors<Shape>(a));
  });
  visit_shape<KeyGradientShape>(a, [&]<class Shape>(std::type_identity<Shape>) {
    const CudaSegmentSchedule& schedule = cuda_schedule(a.queries);
    const ListView<WindowKeyTile> tiles = schedule.window_key_tiles();
    const WindowGradients gradients{tiles.device,
                                    schedule.window_key_segments(),
                                    static_cast<float*>(a.dk),
                                    static_cast<float*>(a.dv),
                                    static_cast<float*>(a.dhalo_k),
                                    static_cast<float*>(a.dhalo_v)};
    const dim3 grid(static_cast<unsigned>(tiles.count), static_cast<unsigned>(a.config->num_kv_heads));
    launch_key_gradients<Shape>(window_key_gradients_kernel<Shape>, a, grid, stream, window_tensors<Shape>(a),
                                gradients);
  });
}

}  // namespace cpnsa::cuda::sm80
