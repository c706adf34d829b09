#pragma once

// The blocks that a tile of neighbouring queries selected, each once, with the queries that chose it: what a thread
// block walks.

#include <cstdint>

#include "kernels/cuda/ptx.cuh"

namespace cpnsa::cuda {

/// In shared memory. Bit q of queries[i] says whether query q of the tile chose blocks[i]; blocks ascend.
struct SelectedUnion {
  std::uint32_t* bitmap;  ///< [words], a bit a block of the document
  std::int32_t* prefix;   ///< [words], blocks of the union before each word
  std::int32_t* blocks;   ///< [capacity]
  unsigned long long* queries;
  int* count;

  static constexpr int most_queries = 64;

  static int words(std::int64_t blocks) { return static_cast<int>((blocks + 31) / 32); }
  __host__ __device__ static std::size_t bytes(int words, int capacity) {
    return static_cast<std::size_t>(capacity) * 12 + static_cast<std::size_t>(words) * 8 + 16;
  }

  __device__ SelectedUnion(unsigned char* shared, int words, int capacity) {
    queries = reinterpret_cast<unsigned long long*>(shared);
    blocks = reinterpret_cast<std::int32_t*>(queries + capacity);
    bitmap = reinterpret_cast<std::uint32_t*>(blocks + capacity);
    prefix = reinterpret_cast<std::int32_t*>(bitmap + words);
    count = prefix + words;
  }

  /// Fills it from selected[query * query_stride + i], i < per_query; -1 stands for none. All threads call it.
  template <int Threads>
  __device__ void build(const std::int32_t* selected, int tile_queries, int per_query, std::int64_t query_stride,
                        int words) const {
    __shared__ int warp_sums[Threads / 32];
    for (int i = threadIdx.x; i < words; i += Threads) bitmap[i] = 0;
    __syncthreads();
    const auto chosen = [&](int i) { return selected[i / per_query * query_stride + i % per_query]; };
    const int total = tile_queries * per_query, first = threadIdx.x;
    const int first_block = first < total ? chosen(first) : -1;  // the only one of most threads: read once
    for (int i = first; i < total; i += Threads) {
      const int block = i == first ? first_block : chosen(i);
      if (block >= 0) atomicOr(&bitmap[block / 32], 1u << (block % 32));
    }
    __syncthreads();

    // An exclusive scan of the words' counts: each thread a run of words, then over threads.
    const int run = (words + Threads - 1) / Threads, begin = min(words, static_cast<int>(threadIdx.x) * run);
    const int end = min(words, begin + run), lane = threadIdx.x % 32;
    int sum = 0;
    for (int i = begin; i < end; ++i) sum += __popc(bitmap[i]);
    int scanned = sum;
    for (int offset = 1; offset < 32; offset *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, scanned, offset);
      if (lane >= offset) scanned += other;
    }
    if (lane == 31) warp_sums[threadIdx.x / 32] = scanned;
    __syncthreads();
    int at = scanned - sum;
    for (int warp = 0; warp < static_cast<int>(threadIdx.x) / 32; ++warp) at += warp_sums[warp];
    if (threadIdx.x == Threads - 1) *count = at + sum;
    for (int i = begin; i < end; ++i) {
      prefix[i] = at;
      for (std::uint32_t bits = bitmap[i]; bits != 0; bits &= bits - 1) {
        blocks[at] = i * 32 + __ffs(static_cast<int>(bits)) - 1;
        queries[at] = 0;
        ++at;
      }
    }
    __syncthreads();
    for (int i = first; i < total; i += Threads) {
      const int query = i / per_query, block = i == first ? first_block : chosen(i);
      if (block < 0) continue;
      const int rank = prefix[block / 32] + __popc(bitmap[block / 32] & ((1u << (block % 32)) - 1));
      atomicOr(&queries[rank], 1ull << query);
    }
    __syncthreads();
  }
};

}  // namespace cpnsa::cuda
