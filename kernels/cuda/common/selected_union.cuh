#pragma once

// The union of the blocks that a tile of neighbouring queries selected, each with the queries that chose it. A thread
// block walks it.

#include <cstdint>

#include "kernels/cuda/ptx/sm80.cuh"

namespace cpnsa::cuda {

/// In shared memory. Bit q of queries[i] says whether query q of the tile chose blocks[i]; blocks ascend.
struct SelectedUnion {
  std::uint32_t* bitmap;  ///< [words], one bit per block of the document
  std::int32_t* prefix;   ///< [words], blocks of the union before each word
  std::int32_t* blocks;   ///< [capacity]
  unsigned long long* queries;
  int* count;

  static int words(std::int64_t blocks) { return static_cast<int>((blocks + 31) / 32); }
  /// Bytes of the list, a multiple of 16.
  __host__ __device__ static int list_bytes(int capacity) { return (capacity * 12 + 4 + 15) / 16 * 16; }
  /// Bytes of the bitmap and the prefix sums, which only build() uses.
  __host__ __device__ static int bitmap_bytes(int words) { return words * 8; }

  /// `list`, aligned to 8: list_bytes(); `bitmaps`: bitmap_bytes(), which lists may share.
  __device__ SelectedUnion(unsigned char* list, int capacity, unsigned char* bitmaps, int words) {
    queries = reinterpret_cast<unsigned long long*>(list);
    blocks = reinterpret_cast<std::int32_t*>(queries + capacity);
    count = blocks + capacity;
    bitmap = reinterpret_cast<std::uint32_t*>(bitmaps);
    prefix = reinterpret_cast<std::int32_t*>(bitmap + words);
  }

  /// Fills it from selected[query * query_stride + i], i < per_query; -1 stands for none. Called by `Threads` threads,
  /// whole warps, each with its number among them; `wait_for_all` is a barrier of theirs.
  template <int Threads, class WaitForAll>
  __device__ void build(int thread, WaitForAll&& wait_for_all, const std::int32_t* selected, int tile_queries,
                        int per_query, std::int64_t query_stride, int words) const {
    __shared__ int warp_sums[Threads / 32];
    for (int i = thread; i < words; i += Threads) bitmap[i] = 0;
    wait_for_all();
    const auto chosen = [&](int i) { return selected[i / per_query * query_stride + i % per_query]; };
    const int total = tile_queries * per_query, first = thread;
    const int first_block = first < total ? chosen(first) : -1;  // the only one of most threads: read once
    for (int i = first; i < total; i += Threads) {
      const int block = i == first ? first_block : chosen(i);
      if (block >= 0) atomicOr(&bitmap[block / 32], 1u << (block % 32));
    }
    wait_for_all();

    // An exclusive scan of the words' counts: each thread a run of words, then over threads.
    const int run = (words + Threads - 1) / Threads, begin = min(words, thread * run);
    const int end = min(words, begin + run), lane = thread % 32;
    int sum = 0;
    for (int i = begin; i < end; ++i) sum += __popc(bitmap[i]);
    int scanned = sum;
    for (int offset = 1; offset < 32; offset *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, scanned, offset);
      if (lane >= offset) scanned += other;
    }
    if (lane == 31) warp_sums[thread / 32] = scanned;
    wait_for_all();
    int at = scanned - sum;
    for (int warp = 0; warp < thread / 32; ++warp) at += warp_sums[warp];
    if (thread == Threads - 1) *count = at + sum;
    for (int i = begin; i < end; ++i) {
      prefix[i] = at;
      for (std::uint32_t bits = bitmap[i]; bits != 0; bits &= bits - 1) {
        blocks[at] = i * 32 + __ffs(static_cast<int>(bits)) - 1;
        queries[at] = 0;
        ++at;
      }
    }
    wait_for_all();
    for (int i = first; i < total; i += Threads) {
      const int query = i / per_query, block = i == first ? first_block : chosen(i);
      if (block < 0) continue;
      const int rank = prefix[block / 32] + __popc(bitmap[block / 32] & ((1u << (block % 32)) - 1));
      atomicOr(&queries[rank], 1ull << query);
    }
    wait_for_all();
  }
};

}  // namespace cpnsa::cuda
