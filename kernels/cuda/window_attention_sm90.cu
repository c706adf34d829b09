#include "kernels/cuda/attention_launch_sm90.cuh"

namespace cpnsa::cuda::sm90 {
namespace {

/// The tokens that the tile's windows cover, in tiles that begin at multiples of 128 from the segment's first token: a
/// tile lies in the rank's own rows or in the halo, whole.
struct WindowWalk {
  struct Parameters {
    CUtensorMap keys[2];  ///< own, halo
    CUtensorMap values[2];
    int window;
  };

  int window;
  int offset;     ///< position of the tile's first query less that of key 0
  int own_tiles;  ///< tiles before the segment's own first token, negative if the walk begins after it
  int own_row;    ///< local row of the segment's first token
  int halo_end;   ///< halo row that the segment's first token would have
  int lowest;     ///< first key that is in the halo or the segment
  int tiles;

  __device__ WindowWalk(const Parameters& parameters, const Segment& segment, const QueryTile& tile)
      : window(parameters.window),
        own_row(static_cast<int>(segment.row)),
        halo_end(static_cast<int>(segment.halo_row + segment.halo_rows)) {
    const int query = static_cast<int>(tile.row - segment.row);  // relative to the segment's first token
    const int first = max(query - window + 1, -static_cast<int>(segment.halo_rows));
    const int begin = first >= 0 ? first / 128 : -((127 - first) / 128);
    own_tiles = -begin;
    offset = query - begin * 128;
    lowest = -static_cast<int>(segment.halo_rows) - begin * 128;
    tiles = (offset + tile.rows + 127) / 128;
  }

  __device__ Place place(int tile) const {
    const int row = (tile - own_tiles) * 128;
    return tile >= own_tiles ? Place{0, own_row + row} : Place{1, halo_end + row};
  }
  __device__ KeyRange visible(int query) const {
    return {max(offset + query + 1 - window, lowest), offset + query + 1};
  }
};

}  // namespace

void window_attention(const WindowAttention& a, cudaStream_t stream) {
  visit_shape<AttentionShape>(a, [&]<class Shape>(std::type_identity<Shape>) {
    const Config& config = *a.config;
    std::int64_t halo_rows = 0;
    for (const Segment& segment : a.queries->segments)
      halo_rows = std::max(halo_rows, segment.halo_row + segment.halo_rows);
    const auto map = [&](const void* own, const void* halo, std::int64_t dim, bool of_halo) {
      // Where there is no halo the kernel never reads it, but a map needs a tensor.
      const bool halo_exists = of_halo && halo_rows > 0;
      return make_tensor_map(
          halo_exists ? halo : own, a.dtype,
          rows_layout(halo_exists ? halo_rows : a.queries->rows, config.num_kv_heads, dim, Shape::keys, 1));
    };
    const WindowWalk::Parameters parameters{{map(a.k, a.halo_k, Shape::dk, false), map(a.k, a.halo_k, Shape::dk, true)},
                                            {map(a.v, a.halo_v, Shape::dv, false), map(a.v, a.halo_v, Shape::dv, true)},
                                            static_cast<int>(std::min<std::int64_t>(config.window, 1 << 30))};
    launch_attention<Shape, WindowWalk>(a, parameters, stream);
  });
}

}  // namespace cpnsa::cuda::sm90
