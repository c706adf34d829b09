#pragma once

// The stages for Hopper (compute capability 9.0) and the layers that its kernels serve; the siblings of
// sm80/stages.hpp. Each enqueues on the stream and returns. A stage throws UnsupportedError for a layer that it does
// not serve.

#include <cuda_runtime_api.h>

#include <cstddef>

#include "cpnsa/ops.hpp"
#include "kernels/cuda/common/gpu.hpp"

namespace cpnsa::cuda::sm90 {

/// Returns whether shapes.hpp has the layer's shape, the dtype has 16 bits and the softmax scale is positive.
bool serves(const Config& config, DType dtype);

/// Returns whether a kernel serves the op. Selection also needs l 32, s 16, m 64 and at most 32 blocks that scores
/// decide; selected attention m 64, and documents short enough for the union of a tile's blocks to fit in shared
/// memory.
bool serves(const CompressedAttention&);
bool serves(const SelectBlocks&);
bool serves(const SelectedAttention&);
bool serves(const WindowAttention&);
bool serves(const CompressedAttentionBackward&);
bool serves(const SelectedAttentionBackward&);
bool serves(const WindowAttentionBackward&);

void compressed_attention(const CompressedAttention&, const Gpu&, cudaStream_t);
void select_blocks(const SelectBlocks&, const Gpu&, cudaStream_t);
void selected_attention(const SelectedAttention&, const Gpu&, cudaStream_t);
void window_attention(const WindowAttention&, const Gpu&, cudaStream_t);

void compressed_attention_backward(const CompressedAttentionBackward&, const Gpu&, cudaStream_t);
void selected_attention_backward(const SelectedAttentionBackward&, const Gpu&, cudaStream_t);
void window_attention_backward(const WindowAttentionBackward&, const Gpu&, cudaStream_t);

/// Bytes of OpContext::scratch that the stage needs.
std::size_t compressed_attention_backward_scratch_bytes(const ProblemSize&);

}  // namespace cpnsa::cuda::sm90
