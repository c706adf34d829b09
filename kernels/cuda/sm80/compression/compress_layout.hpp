#pragma once

// The compressor works on chunks of summaries of two sizes, the last one filled up with zeros, and the matrix products
// that make summaries have one algorithm for both. That keeps a summary's value the same at every rank count. Large
// chunks fill the GPU, small ones save a short sequence products of zeros.

#include <cstdint>

#include "cpnsa/arena.hpp"
#include "cpnsa/ops.hpp"
#include "kernels/cuda/common/matrix_product.hpp"

namespace cpnsa::cuda::sm80 {

inline constexpr std::int64_t small_chunk = 512;  ///< summaries
inline constexpr std::int64_t large_chunk = 1024;

/// Rows of the next chunk of so many summaries.
inline std::int64_t chunk_rows(std::int64_t summaries, std::int64_t max_rows = large_chunk) {
  return summaries <= small_chunk ? small_chunk : max_rows;
}

/// Where a summary reads and writes: first row of the input, row of the summaries tensor.
struct SummaryLocation {
  std::int64_t source;
  std::int64_t summary;
};

/// The compressor of keys or of values.
struct CompressSizes {
  CompressSizes(const Config& config, DType dtype, std::int64_t dim, std::int64_t hidden);

  DType dtype;
  Compressor compressor;
  std::int64_t heads;    ///< G
  std::int64_t dim;      ///< d
  std::int64_t depth;    ///< l d
  std::int64_t columns;  ///< of the first layer; 0 with mean, which has none

  // With x' [chunk, l d], z = x' W the first layer's output, h [chunk, hidden] the hidden layer, y = h W2, one a head.
  // `chunk` is small_chunk or large_chunk.
  MatrixProduct first_layer(std::int64_t chunk) const;    ///< z = x' W
  MatrixProduct second_layer(std::int64_t chunk) const;   ///< y = h W2
  MatrixProduct second_weight(std::int64_t chunk) const;  ///< dW2 += hᵀ dy
  MatrixProduct hidden(std::int64_t chunk) const;         ///< dh = dy W2ᵀ
  MatrixProduct first_weight(std::int64_t chunk) const;   ///< dW += x'ᵀ dz
  MatrixProduct inputs(std::int64_t chunk) const;         ///< dx' = dz Wᵀ
};

/// Scratch of the forward. [chunk] is at most chunk_rows() of all summaries; "layer's" is the layer's type.
struct CompressBuffers {
  CompressBuffers(Arena& arena, const CompressSizes& sizes, std::int64_t summaries);

  SummaryLocation* locations;  ///< [summaries]
  void* inputs;                ///< x', layer's [G, chunk, l d]
  float* z;                    ///< [G, chunk, columns]
  void* hidden;                ///< h, layer's [G, chunk, columns], mlp
  float* y;                    ///< [G, chunk, d], mlp
};

/// Scratch of the backward.
struct CompressBackwardBuffers {
  CompressBackwardBuffers(Arena& arena, const CompressSizes& sizes, std::int64_t summaries);

  SummaryLocation* locations;  ///< [summaries]
  float* dy;                   ///< [G, chunk, d]
  void* dy_narrow;             ///< layer's [G, chunk, d]
  void* inputs;                ///< x', layer's [G, chunk, l d]
  float* dinputs;              ///< dx' [G, chunk, l d]
  float* z;                    ///< [G, chunk, columns], then the activation's slope there, mlp
  void* hidden;                ///< h, layer's [G, chunk, columns], mlp
  float* dz;                   ///< dh, then dz [G, chunk, columns], mlp
  void* dz_narrow;             ///< layer's [G, chunk, columns], mlp
};

/// Summaries of all runs; ArgumentError when a run has none.
std::int64_t summaries_of(const ListView<SummaryRun>& runs);

/// The larger of small_chunk and large_chunk that all matrix products are offered for. Chooses their algorithms now, if
/// they were not before.
std::int64_t max_chunk(const CompressSizes& sizes, MatrixProducts& products);

/// Chooses the algorithms of all matrix products of the compressor's forward and backward, so that no step does.
void prepare_compress(const Config& config, DType dtype, MatrixProducts& products);

}  // namespace cpnsa::cuda::sm80
