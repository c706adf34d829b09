#pragma once

// Hopper's own kernels of the stages, for the shapes that they are made for. The stages of the same names fall
// back on the portable kernels elsewhere; which one runs depends on the device and the configuration alone.

#include <cuda_runtime_api.h>

#include "cpnsa/ops.hpp"
#include "kernels/cuda/schedule/selected_queries.hpp"

namespace cpnsa::cuda::sm90 {

/// Whether the current device is of compute capability 9.0 and the kernels serve this configuration: 16 query heads a
/// KV head, head dimensions (64, 64), (128, 128) or (192, 128).
bool serves_attention(const Config& config);

/// Keys of a tile of the key-outer backward kernels of the compressed branch and the window.
inline constexpr std::int64_t keys_per_tile = 128;

/// Multiprocessors of the current device.
int multiprocessors();

/// serves_attention, and l 32, s 16, m 64, and at most 32 places that scores decide.
bool serves_selection(const Config& config);
/// Also: m 64, and documents short enough for the union of a tile's blocks to fit in shared memory.
bool serves(const SelectedAttention&);
bool serves(const SelectedAttentionBackward&);

void compressed_attention(const CompressedAttention&, cudaStream_t);
void select_blocks(const SelectBlocks&, cudaStream_t);
void selected_attention(const SelectedAttention&, cudaStream_t);
void window_attention(const WindowAttention&, cudaStream_t);

void compressed_attention_backward(const CompressedAttentionBackward&, cudaStream_t);
void selected_query_gradients(const SelectedAttentionBackward&, cudaStream_t);
void selected_key_gradients(const SelectedAttentionBackward&, const SelectedQueries& lists, cudaStream_t);
void window_attention_backward(const WindowAttentionBackward&, cudaStream_t);

}  // namespace cpnsa::cuda::sm90
