#pragma once

// The union of the blocks that a tile of neighbouring queries selected, each with the queries that chose it. A thread
// block walks it.

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/ptx/sm80.cuh"

namespace cpnsa::cuda {

/// How build() lists a tile's blocks: an entry per block, and a bit per query.
struct BlockPerQuery {
  __device__ static int first_entry(int block) { return block; }
  __device__ static int end_entry(int block, int /*query*/) { return block + 1; }
  __device__ static int bit(int query) { return query; }
};

/// In shared memory. Bits of mask(i) say which queries of the tile, or groups of them, chose blocks[i]; blocks ascend.
/// `Bits` per mask: 64, or 16 of which two share a word.
template <int Bits>
struct BlockUnion {
  static_assert(Bits == 64 || Bits == 16);
  using Word = std::conditional_t<Bits == 64, unsigned long long, std::uint32_t>;
  static constexpr int masks_per_word = static_cast<int>(sizeof(Word)) * 8 / Bits;

  std::uint32_t* bitmap;  ///< [words], one bit per block of the document
  std::int32_t* prefix;   ///< [words], blocks of the union before each word
  std::int32_t* blocks;   ///< [capacity]
  Word* masks;
  int* count;

  static int words(std::int64_t blocks) { return static_cast<int>((blocks + 31) / 32); }
  /// Bytes of the list, a multiple of 16.
  __host__ __device__ static int list_bytes(int capacity) {
    return (mask_words(capacity) * static_cast<int>(sizeof(Word)) + capacity * 4 + 4 + 15) / 16 * 16;
  }
  /// Bytes of the bitmap and the prefix sums, which only build() uses.
  __host__ __device__ static int bitmap_bytes(int words) { return words * 8; }

  /// `list`, aligned to 8: list_bytes(); `bitmaps`: bitmap_bytes(), which lists may share.
  __device__ BlockUnion(unsigned char* list, int capacity, unsigned char* bitmaps, int words) {
    masks = reinterpret_cast<Word*>(list);
    blocks = reinterpret_cast<std::int32_t*>(masks + mask_words(capacity));
    count = blocks + capacity;
    bitmap = reinterpret_cast<std::uint32_t*>(bitmaps);
    prefix = reinterpret_cast<std::int32_t*>(bitmap + words);
  }

  __device__ Word mask(int i) const {
    if constexpr (masks_per_word == 1)
      return masks[i];
    else
      return masks[i / masks_per_word] >> (i % masks_per_word * Bits) & ((Word{1} << Bits) - 1);
  }

  /// Fills it from selected[query * query_stride + i], i < per_query; -1 stands for none. Called by `Threads` threads,
  /// whole warps, each with its number among them; `wait_for_all` is a barrier of theirs. `entries` says which entries
  /// of the list a block stands for, and which bit a query: BlockPerQuery or alike.
  template <int Threads, class WaitForAll, class Entries = BlockPerQuery>
  __device__ void build(int thread, WaitForAll&& wait_for_all, const std::int32_t* selected, int tile_queries,
                        int per_query, std::int64_t query_stride, int words, const Entries& entries = {}) const {
    __shared__ int warp_sums[Threads / 32];
    for (int i = thread; i < words; i += Threads) bitmap[i] = 0;
    wait_for_all();
    const auto chosen = [&](int i) { return selected[i / per_query * query_stride + i % per_query]; };
    const int total = tile_queries * per_query, first = thread;
    const int first_block = first < total ? chosen(first) : -1;  // the only one of most threads: read once
    for (int i = first; i < total; i += Threads) {
      const int block = i == first ? first_block : chosen(i);
      if (block < 0) continue;
      for (int entry = entries.first_entry(block); entry < entries.end_entry(block, i / per_query); ++entry)
        atomicOr(&bitmap[entry / 32], 1u << (entry % 32));
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
        masks[at / masks_per_word] = 0;
        ++at;
      }
    }
    wait_for_all();
    for (int i = first; i < total; i += Threads) {
      const int query = i / per_query, block = i == first ? first_block : chosen(i);
      if (block < 0) continue;
      for (int entry = entries.first_entry(block); entry < entries.end_entry(block, query); ++entry) {
        const int rank = prefix[entry / 32] + __popc(bitmap[entry / 32] & ((1u << (entry % 32)) - 1));
        atomicOr(&masks[rank / masks_per_word], Word{1} << (rank % masks_per_word * Bits + entries.bit(query)));
      }
    }
    wait_for_all();
  }

 private:
  /// Even, so that what follows is aligned.
  __host__ __device__ static int mask_words(int capacity) {
    return masks_per_word == 1 ? capacity : (capacity + 2 * masks_per_word - 1) / (2 * masks_per_word) * 2;
  }
};

/// With a bit per query of a tile of at most 64.
using SelectedUnion = BlockUnion<64>;

}  // namespace cpnsa::cuda
