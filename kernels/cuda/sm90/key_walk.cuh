#pragma once

#include <concepts>

#include "kernels/cuda/common/problem.cuh"

namespace cpnsa::cuda::sm90 {

/// The tensor map, of those of a walk's parameters, and the first row that a tile is loaded from.
struct TileLocation {
  int map;
  int row;
};

/// The keys of a query tile: `tiles` tiles of consecutive rows, the first at key 0.
template <class Walk>
concept KeyWalk = requires(const Walk& walk, const typename Walk::Parameters& parameters, const Segment& segment,
                           const QueryTile& tile, int index) {
  Walk(parameters, segment, tile);
  parameters.keys[0];  // tensor maps
  parameters.values[0];
  { walk.tiles } -> std::convertible_to<int>;
  { walk.location(index) } -> std::same_as<TileLocation>;  // of a key tile
  { walk.visible(index) } -> std::same_as<KeyRange>;       // keys that a query of the tile sees
};

}  // namespace cpnsa::cuda::sm90
