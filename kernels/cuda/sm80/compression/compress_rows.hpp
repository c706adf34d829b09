#pragma once

// The rows that the compressor's matrix products read, for the forward and the backward.

#include <cuda_runtime_api.h>

#include "kernels/cuda/sm80/compression/compress_layout.hpp"

namespace cpnsa::cuda::sm80 {

/// Neighbours in a list of summaries, as many as a chunk holds.
struct SummaryChunk {
  const SummaryLocation* locations;  ///< device memory
  std::int64_t count;
  std::int64_t rows;  ///< count, filled up: [chunk] of the buffers
};

/// locations[k] = where summary k of the runs reads and writes, run after run.
void locate_summaries(const ListView<SummaryRun>& runs, std::int64_t stride, std::int64_t summaries,
                      SummaryLocation* locations, cudaStream_t stream);

/// x' = x + pos of the chunk's summaries, [G, chunk.rows, l d]; rows past the count are zero. `pos` may be null.
void gather_inputs(const SummaryChunk& chunk, const CompressSizes& sizes, const void* input, const void* pos,
                   void* inputs, cudaStream_t stream);

/// Calls function(SummaryChunk) for the chunks of `summaries` locations, in order; none has more rows than `max_rows`.
template <class Function>
void for_each_chunk(const SummaryLocation* locations, std::int64_t summaries, std::int64_t max_rows,
                    Function&& function) {
  for (std::int64_t first = 0; first < summaries; first += max_rows) {
    const std::int64_t rest = summaries - first, rows = chunk_rows(rest, max_rows);
    function(SummaryChunk{locations + first, rest < rows ? rest : rows, rows});
  }
}

}  // namespace cpnsa::cuda::sm80
