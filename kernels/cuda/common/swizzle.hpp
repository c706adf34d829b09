#pragma once

namespace cpnsa::cuda {

/// Tiles in shared memory are cut into panels of 64 channels of 16 bits: rows of 128 bytes, eight of which (1024 bytes)
/// the swizzle permutes among each other.
inline constexpr int element_bytes = 2;
inline constexpr int panel_channels = 64;
inline constexpr int swizzle_bytes = panel_channels * element_bytes;
inline constexpr int swizzle_rows = 8;

}  // namespace cpnsa::cuda
