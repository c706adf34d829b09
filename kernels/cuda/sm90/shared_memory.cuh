#pragma once

// The shared memory of a thread block. Each kernel declares a struct, its Layout, of tiles and barriers with names;
// sizes and addresses come from it. Consumers wait on a `full` barrier for the data of a stage, producers on an `empty`
// barrier for its room.

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/common/swizzle.hpp"
#include "kernels/cuda/ptx/sm80.cuh"
#include "kernels/cuda/ptx/sm90.cuh"

namespace cpnsa::cuda::sm90 {

/// Tiles begin at multiples of it, because the swizzle is a function of the address.
inline constexpr int tile_alignment = swizzle_rows * swizzle_bytes;

/// Shared memory that a thread block of compute capability 9.0 can have.
inline constexpr int max_shared_bytes = 227 * 1024;

using Mbarrier = std::uint64_t;

/// `Rows` rows of `Dim` channels, panel after panel, as TMA writes them and WGMMA reads them.
template <class T, int Rows, int Dim>
struct PanelTile {
  static_assert(sizeof(T) == element_bytes && Dim % panel_channels == 0);
  static constexpr int num_rows = Rows;
  static constexpr int num_panels = Dim / panel_channels;
  static constexpr int panel_bytes = Rows * swizzle_bytes;

  T panels[num_panels][Rows][panel_channels];

  /// Byte offset of channels [16 step, 16 step + 16), the depth of one WGMMA.
  static constexpr int channel_offset(int step) {
    return step * 16 / panel_channels * panel_bytes + step * 16 % panel_channels * element_bytes;
  }
  /// Byte offset of rows [16 step, 16 step + 16) of every panel.
  static constexpr int row_offset(int step) { return step * 16 * swizzle_bytes; }
};

/// A Layout at the beginning of the dynamic shared memory, so that addresses of its members are constants.
template <class Layout>
struct SharedMemory {
  Layout* layout;

  /// Bytes of dynamic shared memory that a launch asks for.
  static constexpr int bytes = static_cast<int>(sizeof(Layout));

  __device__ Layout* operator->() const { return layout; }

  /// Address in the shared state space of an array's element, from the array's offset in the layout.
  __device__ std::uint32_t at(std::size_t offset, int index = 0, std::size_t element_size = 0) const {
    return ptx::shared_address(layout) + static_cast<std::uint32_t>(offset) + index * static_cast<int>(element_size);
  }
  __device__ std::uint32_t barrier(std::size_t offset, int index = 0) const {
    return at(offset, index, sizeof(Mbarrier));
  }
};

template <class Layout>
__device__ __forceinline__ SharedMemory<Layout> shared_memory() {
  extern __shared__ __align__(tile_alignment) unsigned char memory[];
  return {reinterpret_cast<Layout*>(memory)};
}

}  // namespace cpnsa::cuda::sm90
