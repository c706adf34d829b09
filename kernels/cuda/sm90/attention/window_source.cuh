#pragma once

#include "kernels/cuda/sm90/attention/attention_tile.cuh"
#include "kernels/cuda/sm90/tensor_map.hpp"

namespace cpnsa::cuda::sm90 {

/// Maps of the rank's own keys and values and of the halo's, in boxes of one KV head.
struct WindowMaps {
  CUtensorMap keys[2];  ///< own, halo
  CUtensorMap values[2];
};

template <class Stage>
WindowMaps window_maps(const Stage& a, int keys) {
  const Config& config = *a.config;
  std::int64_t halo_rows = 0;
  for (const Segment& segment : a.queries->segments)
    halo_rows = std::max(halo_rows, segment.halo_row + segment.halo_rows);
  const auto map = [&](const void* own, const void* halo, std::int64_t dim, bool of_halo) {
    // Where there is no halo the kernel never reads it, but a map needs a tensor.
    const bool halo_exists = of_halo && halo_rows > 0;
    return make_tensor_map(halo_exists ? halo : own, a.dtype,
                           rows_layout(halo_exists ? halo_rows : a.queries->rows, config.num_kv_heads, dim, keys, 1));
  };
  const std::int64_t d_qk = config.head_dim_qk, d_v = config.head_dim_v;
  return {{map(a.k, a.halo_k, d_qk, false), map(a.k, a.halo_k, d_qk, true)},
          {map(a.v, a.halo_v, d_v, false), map(a.v, a.halo_v, d_v, true)}};
}

inline int window_of(const Config& config) {
  return static_cast<int>(std::min<std::int64_t>(config.window, 1 << 30));
}

/// The tokens that the tile's windows cover, in tiles of `Keys` from the first that is seen on. A tile lies in the
/// rank's own rows or in the halo, whole: where the first is in the halo, a tile begins at the segment's first token.
template <int Keys>
struct WindowWalk {
  struct Parameters : WindowMaps {
    int window;
  };

  int window;
  int begin;     ///< key 0, relative to the segment's first token
  int query;     ///< the tile's first query, relative to the segment's first token
  int own_row;   ///< local row of the segment's first token
  int halo_end;  ///< halo row that the segment's first token would have
  int lowest;    ///< first key that is in the halo or the segment
  int tiles;

  __device__ WindowWalk(const Parameters& parameters, const Segment& segment, const QueryTile& tile)
      : window(parameters.window),
        query(static_cast<int>(tile.row - segment.row)),
        own_row(static_cast<int>(segment.row)),
        halo_end(static_cast<int>(segment.halo_row + segment.halo_rows)) {
    const int halo_rows = static_cast<int>(segment.halo_rows), first = max(query - window + 1, -halo_rows);
    begin = first >= 0 ? first : -((Keys - 1 - first) / Keys * Keys);
    lowest = -halo_rows - begin;
    tiles = (query + tile.rows - begin + Keys - 1) / Keys;
  }

  __device__ TileLocation location(int tile) const {
    const int row = begin + tile * Keys;
    return row >= 0 ? TileLocation{0, own_row + row} : TileLocation{1, halo_end + row};
  }
  __device__ KeyRange visible(int query_of_tile) const {
    const int end = query + query_of_tile + 1 - begin;
    return {max(end - window, lowest), end};
  }
};

}  // namespace cpnsa::cuda::sm90
