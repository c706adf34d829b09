#pragma once

// The rows that the compressor's matrix products read, for the forward and the backward.

#include <cuda_runtime_api.h>

#include "kernels/cuda/compress_layout.hpp"

namespace cpnsa::cuda {

/// Up to summaries_per_chunk neighbours of a list of summaries.
struct SummaryChunk {
  const SummaryPlace* places;  ///< device memory
  std::int64_t count;
};

/// places[k] = where summary k of the runs reads and writes, run after run.
void locate_summaries(const ListView<SummaryRun>& runs, std::int64_t stride, std::int64_t summaries,
                      SummaryPlace* places, cudaStream_t stream);

/// x' = x + pos of the chunk's summaries, [G, summaries_per_chunk, l d]; rows past the chunk are zero. `pos` may be
/// null.
void gather_inputs(const SummaryChunk& chunk, const CompressSizes& sizes, const void* input, const void* pos,
                   void* inputs, cudaStream_t stream);

/// Calls function(SummaryChunk) for the chunks of `summaries` places, in order.
template <class Function>
void for_each_chunk(const SummaryPlace* places, std::int64_t summaries, Function&& function) {
  for (std::int64_t first = 0; first < summaries; first += summaries_per_chunk)
    function(SummaryChunk{places + first,
                          summaries - first < summaries_per_chunk ? summaries - first : summaries_per_chunk});
}

}  // namespace cpnsa::cuda
