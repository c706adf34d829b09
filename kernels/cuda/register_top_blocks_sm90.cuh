#pragma once

#include "kernels/cuda/top_blocks.cuh"

namespace cpnsa::cuda::sm90 {

/// The best blocks of one query so far, one a lane of a warp, best first; lanes from `places` on hold runners-up. Order
/// is that of TopBlocks: higher scores first, NaN last, ties to the lower block; offers come in ascending order of
/// blocks. At most 32 places, at least one.
class RegisterTopBlocks {
 public:
  /// What a warp's lanes offer, a block each. Offers of less than the worst of the best change nothing.
  struct Offers {
    unsigned key;      ///< the lane's
    unsigned waiting;  ///< lanes not taken yet
    unsigned next_key = 0;
    int next_lane = 0;

    /// The lowest lane's offer becomes the next, or one that changes nothing when none is left.
    __device__ __forceinline__ void fetch() {
      next_lane = (__ffs(static_cast<int>(waiting)) - 1) & 31;
      const unsigned fetched = __shfl_sync(all, key, next_lane);
      next_key = waiting != 0 ? fetched : 0;
      waiting &= waiting - 1;
    }
  };

  /// All lanes call it, those too whose block does not compete.
  __device__ __forceinline__ Offers offers(float score, bool competes, int places) const {
    // Unsigned numbers in the order of the scores, which are not negative: empty places 0, NaN 1, numbers.
    const unsigned key = isnan(score) ? 1 : __float_as_uint(score) + 2;
    const unsigned worst = __shfl_sync(all, key_, places - 1);
    return {key, __ballot_sync(all, competes && key > worst)};
  }

  /// Takes what two queries are offered, lane i block first + i; both at a time, since an insertion is mostly latency.
  __device__ static __forceinline__ void take(RegisterTopBlocks (&top)[2], Offers (&offers)[2], int first) {
    const int count = max(__popc(offers[0].waiting), __popc(offers[1].waiting));
    if (count == 0) return;
    for (Offers& to : offers) to.fetch();
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      const Offers now[2] = {offers[0], offers[1]};
      for (Offers& to : offers) to.fetch();
      for (int e = 0; e < 2; ++e) top[e].insert(now[e].next_key, first + now[e].next_lane);
    }
  }

  /// selected[0 .. n) of the query: the forced blocks and the best of the others, ascending; -1 where there are fewer.
  __device__ __forceinline__ void write(std::int32_t* selected, const SelectionRule& rule, int position) const {
    const int lane = threadIdx.x % 32, causal = rule.causal(position), places = rule.places();
    const bool chooses = rule.chooses(position);
    const int forced = chooses ? rule.init_blocks : rule.select_count, last = rule.select_count - rule.local_blocks;
    int rank = 0;
    for (int other = 0; other < places; ++other) rank += __shfl_sync(all, block_, other) < block_;
    if (chooses && lane < places) selected[rule.init_blocks + rank] = block_;
    for (int i = lane; i < rule.select_count; i += 32) {
      if (i < forced) selected[i] = i < causal ? i : -1;
      if (chooses && i >= last) selected[i] = causal - rule.select_count + i;
    }
  }

 private:
  static constexpr unsigned all = 0xffffffffu;

  // Behind all that are as good: those have the lower blocks. Whatever comes after moves a lane up.
  __device__ __forceinline__ void insert(unsigned key, int block) {
    const unsigned before = __shfl_up_sync(all, key_, 1);
    const int block_before = __shfl_up_sync(all, block_, 1);
    const bool moves = key_ < key, is_first = threadIdx.x % 32 == 0 || before >= key;
    key_ = !moves ? key_ : is_first ? key : before;
    block_ = !moves ? block_ : is_first ? block : block_before;
  }

  unsigned key_ = 0;
  int block_ = -1;
};

/// From twice the probabilities, summed over heads, of 128 summaries in shared memory to the scores of their 32 blocks,
/// one a lane. `carry`: what the last summary before them gives to the first block, and on return what their last gives
/// to the next.
__device__ __forceinline__ float block_score(const float* sums, float& carry) {
  const int lane = threadIdx.x % 32;
  const float4 own = reinterpret_cast<const float4*>(sums)[lane];
  const float before = __shfl_sync(0xffffffffu, own.w, (lane + 31) % 32);
  // A block's last summary is half its own and half the next one's.
  const float score = fmaf(0.5f, own.w + (lane == 0 ? carry : before), own.x + own.y + own.z);
  carry = before;  // as lane 0 has it
  return score;
}

}  // namespace cpnsa::cuda::sm90
