#pragma once

// The stages for every GPU of compute capability 8.0 or later, one function a file. Each enqueues on the stream and
// returns.

#include <cuda_runtime_api.h>

#include <cstddef>

#include "cpnsa/ops.hpp"
#include "kernels/cuda/common/handles.hpp"

namespace cpnsa::cuda::sm80 {

void pack_blocks(const PackBlocks&, cudaStream_t);
void add_blocks(const AddBlocks&, cudaStream_t);
void mark_demand(const MarkDemand&, cudaStream_t);

void compress(const Compress&, Handles&, cudaStream_t);
void compressed_attention(const CompressedAttention&, cudaStream_t);
void select_blocks(const SelectBlocks&, cudaStream_t);
void selected_attention(const SelectedAttention&, cudaStream_t);
void window_attention(const WindowAttention&, cudaStream_t);
void combine_branches(const CombineBranches&, cudaStream_t);

void combine_branches_backward(const CombineBranchesBackward&, cudaStream_t);
void window_attention_backward(const WindowAttentionBackward&, cudaStream_t);
void selected_attention_backward(const SelectedAttentionBackward&, cudaStream_t);
void compressed_attention_backward(const CompressedAttentionBackward&, cudaStream_t);
void compress_backward(const CompressBackward&, Handles&, cudaStream_t);

/// Bytes of OpContext::scratch that the stages need, each from the code that lays it out.
std::size_t compress_scratch_bytes(const ProblemSize&);
std::size_t compressed_attention_backward_scratch_bytes(const ProblemSize&);
std::size_t selected_attention_backward_scratch_bytes(const ProblemSize&);

}  // namespace cpnsa::cuda::sm80
