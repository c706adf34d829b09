#pragma once

// The stages of the CUDA device, one function a file; Device's virtuals of the same names call them. Each enqueues on
// the stream and returns.

#include <cuda_runtime_api.h>

#include "cpnsa/stages.hpp"

namespace cpnsa::cuda {

struct Handles;  // what stages need of the device beside memory: kernels/cuda/handles.hpp

void copy_rows(const CopyRows&, cudaStream_t);
void add_rows(const AddRows&, cudaStream_t);
void convert(const Convert&, cudaStream_t);
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

}  // namespace cpnsa::cuda
