#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "cpnsa/ops.hpp"
#include "kernels/cuda/common/gpu.hpp"

namespace cpnsa::cuda::sm90 {

/// True if a row of shapes.hpp serves the layer, the dtype has 16 bits and the softmax scale is positive.
bool serves(const Config& config, DType dtype);

/// True if the kernels of the op serve it: the layer alone decides, except for the ops below.
template <class Op>
bool serves(const Op& op) {
  return serves(*op.config, op.dtype);
}
/// Needs any row of shapes.hpp, at most 128 blocks that scores decide, and shared memory for the heads of a query.
template <>
bool serves(const SelectBlocks&);
/// Needs any row of shapes.hpp; m 16, 32 or a multiple of 64; and consumer warps for the heads of a query.
template <>
bool serves(const SelectedAttention&);
template <>
bool serves(const SelectedAttentionBackward&);

/// Queries of the tiles of the two ops above for a rank whose tokens end at `end_position` of their documents; 0 where
/// the kernels do not serve the layer. The union of the blocks of a tile's queries is in shared memory: in long
/// documents tiles have as many queries as their blocks leave room for.
int selected_attention_queries(const Config& config, DType dtype, std::int64_t end_position);
int selected_query_gradients_queries(const Config& config, DType dtype, std::int64_t end_position);

/// Enqueues an op by Hopper's kernels (compute capability 9.0). A specialization per op is defined in the file of its
/// kernels. UnsupportedError for an op that they do not serve.
template <class Op>
void run_op(const Op& op, const Gpu& gpu, cudaStream_t stream);

/// Bytes of OpContext::scratch that the op needs.
std::size_t compressed_attention_backward_scratch_bytes(const ProblemSize&);

}  // namespace cpnsa::cuda::sm90
