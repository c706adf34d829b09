#include <cub/block/block_scan.cuh>

#include "kernels/cuda/common/check.hpp"
#include "kernels/cuda/common/packs.cuh"
#include "kernels/cuda/sm80/compression/compress_rows.hpp"

namespace cpnsa::cuda::sm80 {
namespace {

constexpr int block_threads = 256;

// A thread: one summary. All thread blocks walk the runs, block_threads at a time, up to the one their summaries are
// in.
__global__ void __launch_bounds__(block_threads)
    locate_summaries_kernel(const SummaryRun* __restrict__ runs, std::int64_t run_count, std::int64_t stride,
                            std::int64_t summaries, SummaryLocation* __restrict__ locations) {
  using Scan = cub::BlockScan<std::int64_t, block_threads>;
  __shared__ typename Scan::TempStorage scan;
  __shared__ std::int64_t starts[block_threads];  // first summary of each run

  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * block_threads;
  const std::int64_t own = first + threadIdx.x;
  std::int64_t before = 0;  // summaries of the runs walked so far
  for (std::int64_t base = 0; base < run_count && before < first + block_threads; base += block_threads) {
    const std::int64_t run = base + threadIdx.x;
    std::int64_t start = 0, total = 0;
    Scan(scan).ExclusiveSum(run < run_count ? runs[run].count : 0, start, total);
    starts[threadIdx.x] = before + start;
    __syncthreads();
    if (own >= before && own < before + total && own < summaries) {
      // The last run that starts at or before `own`; those past the end start at `before + total`.
      int low = 0, high = block_threads - 1;
      while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (starts[middle] <= own) {
          low = middle;
        } else {
          high = middle - 1;
        }
      }
      const SummaryRun found = runs[base + low];
      const std::int64_t k = own - starts[low];
      locations[own] = {found.source_row + k * stride, found.summary + k};
    }
    before += total;
    __syncthreads();
  }
}

// A thread block: one summary of one head.
template <class T>
__global__ void __launch_bounds__(block_threads)
    gather_inputs_kernel(const SummaryChunk chunk, int heads, int tokens, int packs, const T* __restrict__ input,
                         const T* __restrict__ pos, T* __restrict__ inputs) {
  const int row = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  T* const destination = inputs + (head * chunk.rows + row) * tokens * packs * pack_items;
  if (row >= chunk.count) {
    LayerPack<T> zero;
#pragma unroll
    for (int c = 0; c < pack_items; ++c) zero.item[c] = narrow<T>(0.0f);
    for (int i = static_cast<int>(threadIdx.x); i < tokens * packs; i += block_threads)
      store_pack(destination, i, zero);
    return;
  }
  const std::int64_t source = chunk.locations[row].source;
  for (int i = static_cast<int>(threadIdx.x); i < tokens * packs; i += block_threads) {
    const int token = i / packs, pack = i % packs;
    LayerPack<T> x = load_pack(input + ((source + token) * heads + head) * packs * pack_items, pack);
    if (pos) {
      const LayerPack<T> p = load_pack(pos + static_cast<std::int64_t>(head) * tokens * packs * pack_items, i);
#pragma unroll
      for (int c = 0; c < pack_items; ++c) x.item[c] = narrow<T>(widen(x.item[c]) + widen(p.item[c]));
    }
    store_pack(destination, i, x);
  }
}

}  // namespace

void locate_summaries(const ListView<SummaryRun>& runs, std::int64_t stride, std::int64_t summaries,
                      SummaryLocation* locations, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>((summaries + block_threads - 1) / block_threads);
  locate_summaries_kernel<<<blocks, block_threads, 0, stream>>>(runs.device, runs.count, stride, summaries, locations);
  check_launch("locate_summaries");
}

void gather_inputs(const SummaryChunk& chunk, const CompressSizes& sizes, const void* input, const void* pos,
                   void* inputs, cudaStream_t stream) {
  const dim3 blocks(static_cast<unsigned>(chunk.rows), static_cast<unsigned>(sizes.heads));
  visit_type(sizes.dtype, [&]<class T>(std::type_identity<T>) {
    gather_inputs_kernel<T><<<blocks, block_threads, 0, stream>>>(
        chunk, static_cast<int>(sizes.heads), static_cast<int>(sizes.depth / sizes.dim),
        static_cast<int>(sizes.dim / pack_items), static_cast<const T*>(input), static_cast<const T*>(pos),
        static_cast<T*>(inputs));
  });
  check_launch("gather_inputs");
}

}  // namespace cpnsa::cuda::sm80
