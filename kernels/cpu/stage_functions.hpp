#pragma once

// The stages of the CPU device, one function a file; Device's virtuals of the same names call them.

#include "cpnsa/stages.hpp"

namespace cpnsa::cpu {

void copy_rows(const CopyRows&);
void add_rows(const AddRows&);
void convert(const Convert&);
void pack_blocks(const PackBlocks&);
void add_blocks(const AddBlocks&);
void mark_demand(const MarkDemand&);

void compress(const Compress&);
void compressed_attention(const CompressedAttention&);
void select_blocks(const SelectBlocks&);
void selected_attention(const SelectedAttention&);
void window_attention(const WindowAttention&);
void combine_branches(const CombineBranches&);

void combine_branches_backward(const CombineBranchesBackward&);
void window_attention_backward(const WindowAttentionBackward&);
void selected_attention_backward(const SelectedAttentionBackward&);
void compressed_attention_backward(const CompressedAttentionBackward&);
void compress_backward(const CompressBackward&);

}  // namespace cpnsa::cpu
