#pragma once

#include <cstdint>

#include "kernels/cuda/common/swizzle.hpp"
#include "kernels/cuda/ptx/sm80.cuh"

namespace cpnsa::cuda {

/// A tile of `Rows` rows of `Dim` 16-bit elements in shared memory, cut into panels of 64 channels (128 bytes). In a
/// panel, the 16-byte chunk c of row r is stored at chunk c ^ (r % 8), so that the eight rows of an ldmatrix, and the
/// rows that a warp fills, touch every bank once. This is the layout of a TMA box of 64 elements under 128-byte
/// swizzle.
template <int Rows, int Dim>
struct SwizzledTile {
  static_assert(Dim % panel_channels == 0);
  static constexpr int rows = Rows;
  static constexpr int bytes = Rows * Dim * element_bytes;
  static constexpr int chunks = Dim / 8;  ///< of a row

  /// Byte offset of a 16-byte chunk.
  __device__ static constexpr std::uint32_t offset(int row, int chunk) {
    return static_cast<std::uint32_t>((chunk / 8) * (Rows * swizzle_bytes) + row * swizzle_bytes +
                                      (((chunk % 8) ^ (row % 8)) * 16));
  }

  /// The address of chunk `chunk` plus an even `step`, eight rows times `rows8` on, from that of `chunk`, which is 0 or
  /// 1: one exclusive or and a constant, instead of another offset(). Tiles begin at multiples of 128 bytes.
  __device__ static constexpr std::uint32_t advance(std::uint32_t address, int rows8, int step) {
    return (address ^ static_cast<std::uint32_t>(step % 8 * 16)) +
           static_cast<std::uint32_t>(step / 8 * (Rows * swizzle_bytes) + rows8 * swizzle_rows * swizzle_bytes);
  }
};

/// Fills rows of a tile through cp.async. `row_pointer(r)` is the global address of row r's first element, or null for
/// a row of zeros; `elements` (a multiple of 8) of it are read, the rest of the tile's row is zeroed. `readable` is any
/// valid address: cp.async wants one even where it reads nothing.
template <class Tile, int Threads, class T, class RowPointer>
__device__ __forceinline__ void load_rows(std::uint32_t tile, int elements, const T* readable,
                                          RowPointer&& row_pointer) {
  const int chunks = elements / 8;
  for (int index = threadIdx.x; index < Tile::rows * Tile::chunks; index += Threads) {
    const int row = index / Tile::chunks, chunk = index % Tile::chunks;
    const T* const source = row_pointer(row);
    const bool valid = source != nullptr && chunk < chunks;
    ptx::cp_async_16(tile + Tile::offset(row, chunk), valid ? source + chunk * 8 : readable, valid);
  }
}

}  // namespace cpnsa::cuda
