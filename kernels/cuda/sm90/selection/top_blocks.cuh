#pragma once

#include "kernels/cuda/common/selection_rule.cuh"

namespace cpnsa::cuda::sm90 {

/// The best blocks of one query so far, `Slots` per lane of a warp, best first: those of the first slot of all lanes,
/// then those of the next. From `num_scored` on they are runners-up. Order: higher scores first, NaN last, ties to the
/// lower block; offers come in ascending order of blocks. At most 32 `Slots` num_scored, at least one.
template <int Slots>
class RegisterTopBlocks {
 public:
  /// Unsigned numbers in the order of the scores, which are not negative: 0 of what does not compete, NaN 1, numbers.
  __device__ static __forceinline__ unsigned key(float score, bool competes) {
    const unsigned number = isnan(score) ? 1 : __float_as_uint(score) + 2;
    return competes ? number : 0;
  }

  /// Takes what two queries are offered next: keys[e] of block last - lane for query e. Both at a time, since an
  /// insertion is mostly latency.
  __device__ static __forceinline__ void take(RegisterTopBlocks (&top)[2], const unsigned (&keys)[2], int last,
                                              int num_scored) {
    // Asked of all lanes so that the compiler knows that they go the same way.
    if (__any_sync(all, last < 32)) return begin(top, keys, last);
    Offers offers[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const unsigned worst = top[e].key_at(num_scored - 1);
      offers[e] = {keys[e], __ballot_sync(all, keys[e] > worst)};
    }
    unsigned more = offers[0].waiting | offers[1].waiting;
    if (more == 0) return;
#pragma unroll
    for (Offers& to : offers) to.fetch();
#pragma unroll 1
    do {
      more = offers[0].waiting | offers[1].waiting;
      const Offers now[2] = {offers[0], offers[1]};
#pragma unroll
      for (Offers& to : offers) to.fetch();
#pragma unroll
      for (int e = 0; e < 2; ++e) top[e].insert(now[e].fetched, last - now[e].lane);
    } while (more != 0);
  }

  /// selected[0 .. n) of the query: the forced blocks and the best of the others, ascending; -1 where there are fewer.
  __device__ __forceinline__ void write(std::int32_t* selected, const SelectionRule& rule, int position) const {
    const int lane = threadIdx.x % 32, causal = rule.causal(position), num_scored = rule.num_scored();
    const bool chooses = rule.chooses(position);
    const int forced = chooses ? rule.init_blocks : rule.select_count, last = rule.select_count - rule.local_blocks;
#pragma unroll
    for (int slot = 0; slot < Slots; ++slot) {
      int rank = 0;
#pragma unroll
      for (int of = 0; of < Slots; ++of)
        for (int other = 0; other < min(32, num_scored - 32 * of); ++other)
          rank += __shfl_sync(all, block_[of], other) < block_[slot];
      if (chooses && 32 * slot + lane < num_scored) selected[rule.init_blocks + rank] = block_[slot];
    }
    for (int i = lane; i < rule.select_count; i += 32) {
      if (i < forced) selected[i] = i < causal ? i : -1;
      if (chooses && i >= last) selected[i] = causal - rule.select_count + i;
    }
  }

 private:
  static constexpr unsigned all = 0xffffffffu;

  // Takes the first offers: all of them are the best so far, once they are sorted.
  __device__ static __forceinline__ void begin(RegisterTopBlocks (&top)[2], const unsigned (&keys)[2], int last) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      top[e].key_[0] = keys[e];
      top[e].block_[0] = last - lane;
    }
#pragma unroll
    for (int size = 2; size <= 32; size *= 2)
#pragma unroll
      for (int stride = size / 2; stride > 0; stride /= 2)
#pragma unroll
        for (int e = 0; e < 2; ++e) top[e].keep_of_two(stride, ((lane & stride) == 0) == ((lane & size) == 0));
  }

  /// The blocks that the lanes of a warp offer, one each; the highest lane offers the lowest block.
  struct Offers {
    unsigned key;          ///< the lane's
    unsigned waiting;      ///< lanes not fetched yet
    unsigned fetched = 0;  ///< 0 when none was left
    int lane = 0;          ///< that it is of

    __device__ __forceinline__ void fetch() {
      lane = 31 - __clz(static_cast<int>(waiting));
      const unsigned of_lane = __shfl_sync(all, key, lane);
      fetched = waiting != 0 ? of_lane : 0;
      waiting &= __funnelshift_l(~1u, ~1u, lane);
    }
  };

  // Inserts behind all blocks that are as good, which have lower indices; those that follow move one lane up.
  __device__ __forceinline__ void insert(unsigned key, int block) {
#pragma unroll
    for (int slot = Slots - 1; slot >= 0; --slot) {
      unsigned before = __shfl_up_sync(all, key_[slot], 1);
      int block_before = __shfl_up_sync(all, block_[slot], 1);
      bool is_first = threadIdx.x % 32 == 0;
      if (slot > 0) {
        const unsigned last = __shfl_sync(all, key_[slot > 0 ? slot - 1 : 0], 31);
        const int last_block = __shfl_sync(all, block_[slot > 0 ? slot - 1 : 0], 31);
        before = is_first ? last : before;
        block_before = is_first ? last_block : block_before;
        is_first = false;
      }
      const bool moves = key_[slot] < key;
      is_first = is_first || before >= key;
      key_[slot] = !moves ? key_[slot] : is_first ? key : before;
      block_[slot] = !moves ? block_[slot] : is_first ? block : block_before;
    }
  }

  // The same in all lanes.
  __device__ __forceinline__ unsigned key_at(int place) const {
    unsigned key = key_[0];
#pragma unroll
    for (int slot = 1; slot < Slots; ++slot) key = place / 32 == slot ? key_[slot] : key;
    return __shfl_sync(all, key, place % 32);
  }

  // The better or the worse one, in the first slot, of this lane's and the lane's `stride` away.
  __device__ __forceinline__ void keep_of_two(int stride, bool better) {
    const unsigned other = __shfl_xor_sync(all, key_[0], stride);
    const int other_block = __shfl_xor_sync(all, block_[0], stride);
    const bool is_better = (key_[0] > other) | ((key_[0] == other) & (block_[0] < other_block));  // without branches
    key_[0] = is_better == better ? key_[0] : other;
    block_[0] = is_better == better ? block_[0] : other_block;
  }

  unsigned key_[Slots] = {};
  int block_[Slots] = {};
};

/// From twice the probabilities, summed over heads, of 128 summaries in shared memory to the scores of their 32 blocks,
/// one per lane, the last block in lane 0. `carry`: the contribution of the last summary before them to the first
/// block, and on return that of their last summary to the next block.
__device__ __forceinline__ float block_score(const float* sums, float& carry) {
  const int lane = threadIdx.x % 32;
  const float4 own = reinterpret_cast<const float4*>(sums)[31 - lane];
  const float before = __shfl_sync(0xffffffffu, own.w, (lane + 1) % 32);
  // The last summary of a block counts half for it and half for the next block.
  const float score = fmaf(0.5f, own.w + (lane == 31 ? carry : before), own.x + own.y + own.z);
  carry = before;  // as lane 31 has it
  return score;
}

}  // namespace cpnsa::cuda::sm90
