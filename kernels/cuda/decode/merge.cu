// The merges of a sharded cache, of all ranks' parts in gathered memory: a warp takes a (row, head), or a (row, KV
// head).

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/common/gate.cuh"
#include "kernels/cuda/common/packs.cuh"
#include "kernels/cuda/common/selection_rule.cuh"
#include "kernels/cuda/decode/best_blocks.cuh"
#include "kernels/cuda/decode/launch.cuh"
#include "kernels/cuda/decode/run_op.hpp"
#include "kernels/cuda/decode/schedule.hpp"

namespace cpnsa::cuda::decode {
namespace {

constexpr int block_threads = 256;
constexpr int warps = block_threads / 32;

/// RankParts of a known type.
template <class Item>
struct Parts {
  const unsigned char* first = nullptr;
  std::int64_t stride = 0;
  int ranks = 0;

  Parts() = default;
  Parts(const RankParts& parts, std::int64_t count)
      : first(static_cast<const unsigned char*>(parts.first)), stride(parts.stride), ranks(static_cast<int>(count)) {}
  __device__ const Item* of(int rank) const { return reinterpret_cast<const Item*>(first + rank * stride); }
};

/// The log-sum-exp over the ranks of the parts at `index`: -infinity if all are, NaN if one is.
__device__ float merged_sum(const Parts<float>& parts, std::int64_t index) {
  float maximum = -INFINITY;
  for (int rank = 0; rank < parts.ranks; ++rank) {
    const float part = parts.of(rank)[index];
    if (part > maximum || isnan(part)) maximum = part;
  }
  if (!isfinite(maximum)) return maximum;
  float sum = 0.f;
  for (int rank = 0; rank < parts.ranks; ++rank) sum += expf(parts.of(rank)[index] - maximum);
  return maximum + logf(sum);
}

/// The (row, head) of this warp; -1 if there is none or the row belongs to no sequence.
__device__ std::int64_t own_pair(const StepSchedule& schedule, int heads) {
  const std::int64_t pair = static_cast<std::int64_t>(blockIdx.x) * warps + threadIdx.x / 32;
  return pair < static_cast<std::int64_t>(schedule.tokens) * heads && schedule.rows[pair / heads].slot >= 0 ? pair : -1;
}

Launch launch_of_pairs(const Gpu& gpu, cudaStream_t stream, std::int64_t pairs) {
  return {gpu, stream, dim3(static_cast<unsigned>((pairs + warps - 1) / warps)), block_threads};
}

__global__ void __launch_bounds__(block_threads)
    merge_sums_kernel(const StepSchedule schedule, int heads, const Parts<float> parts, float* log_sum_exp) {
  ptx::wait_for_previous_grid();
  ptx::allow_next_grid();
  const std::int64_t pair = own_pair(schedule, heads);
  if (pair >= 0 && threadIdx.x % 32 == 0) log_sum_exp[pair] = merged_sum(parts, pair);
}

template <class T>
struct Weighing {
  GateKind kind;
  const T* gate;
  const float* o[2];  ///< of branches 0 (compressed) and 2 (window)
  const float* own[2];
  const float* all[2];
  float* out;
  int d_v;
};

template <class T>
__global__ void __launch_bounds__(block_threads)
    weigh_parts_kernel(const StepSchedule schedule, int heads, const Weighing<T> a) {
  ptx::wait_for_previous_grid();
  ptx::allow_next_grid();
  const std::int64_t pair = own_pair(schedule, heads);
  if (pair < 0) return;
  float factor[2] = {};
  bool held[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float own = a.own[i][pair];
    held[i] = own != -INFINITY;
    if (held[i]) factor[i] = gate_value(a.kind, widen(a.gate[3 * pair + 2 * i])) * expf(own - a.all[i][pair]);
  }
  for (int c = static_cast<int>(threadIdx.x) % 32; c < a.d_v; c += 32) {
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (held[i]) sum += factor[i] * a.o[i][pair * a.d_v + c];
    a.out[pair * a.d_v + c] = sum;
  }
}

/// A branch's parts.
struct MergedBranch {
  Parts<float> o;
  Parts<float> log_sum_exp;
  float* all;  ///< [tokens, H]; null: not wanted
};

template <class T>
struct Merging {
  GateKind kind;
  const T* gate;
  Parts<float> weighted;
  MergedBranch branches[2];  ///< selected, window; without parts: none
  const float* o_cmp;
  T* out;
  int d_v;
};

template <class T>
__global__ void __launch_bounds__(block_threads)
    merge_parts_kernel(const StepSchedule schedule, int heads, const Merging<T> a) {
  ptx::wait_for_previous_grid();
  ptx::allow_next_grid();
  const std::int64_t pair = own_pair(schedule, heads);
  if (pair < 0) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float all[2] = {}, gates[3];
#pragma unroll
  for (int i = 0; i < 3; ++i) gates[i] = gate_value(a.kind, widen(a.gate[3 * pair + i]));
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (!a.branches[i].o.first) continue;
    all[i] = merged_sum(a.branches[i].log_sum_exp, pair);
    if (a.branches[i].all && lane == 0) a.branches[i].all[pair] = all[i];
  }
  for (int c = lane; c < a.d_v; c += 32) {
    const std::int64_t at = pair * a.d_v + c;
    float sum = a.o_cmp ? gates[0] * a.o_cmp[at] : 0.f;
    if (a.weighted.first)
      for (int rank = 0; rank < a.weighted.ranks; ++rank) sum += a.weighted.of(rank)[at];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (!a.branches[i].o.first) continue;
      for (int rank = 0; rank < a.branches[i].o.ranks; ++rank) {
        const float part = a.branches[i].log_sum_exp.of(rank)[pair];
        if (part != -INFINITY) sum += gates[1 + i] * expf(part - all[i]) * a.branches[i].o.of(rank)[at];
      }
    }
    a.out[at] = narrow<T>(sum);
  }
}

/// Merges candidates of one row and KV head by one warp, a thread block each.
__global__ void __launch_bounds__(32)
    merge_candidates_kernel(const StepSchedule schedule, int groups, const SelectionRule rule,
                            const Parts<float> scores, const Parts<std::int32_t> candidates, std::int32_t* selected) {
  extern __shared__ __align__(1024) unsigned char shared[];
  ptx::wait_for_previous_grid();
  ptx::allow_next_grid();
  const std::int64_t pair = blockIdx.x;
  const Row row = schedule.rows[pair / groups];
  if (row.slot < 0) return;
  const int lane = static_cast<int>(threadIdx.x), n = rule.select_count, count = rule.num_scored();
  std::int32_t* const own = selected + pair * n;
  if (!rule.chooses(row.position)) {
    for (int i = lane; i < n; i += 32) own[i] = i < rule.causal(row.position) ? i : -1;
    return;
  }
  auto* const best = reinterpret_cast<std::uint64_t*>(shared);
  std::uint64_t* const offered = best + count;
  const int end = rule.candidates_end(row.position);
  for (int i = lane; i < n * scores.ranks; i += 32) {
    const std::int64_t at = pair * n + i % n;
    const int block = candidates.of(i / n)[at];
    offered[i] =
        block >= rule.init_blocks && block < end ? RankedBlock::pack(scores.of(i / n)[at], block) : std::uint64_t{0};
  }
  __syncwarp();
  take_best(offered, n * scores.ranks, best, count);
  write_selected(rule, end, best, own, lane, 32);
}

}  // namespace

template <>
void run_op(const DecodeMergeSums& a, const Gpu& gpu, cudaStream_t stream) {
  const auto heads = static_cast<int>(a.config->num_q_heads);
  launch("merge_sums", launch_of_pairs(gpu, stream, a.tokens * heads), merge_sums_kernel, StepSchedule(a), heads,
         Parts<float>(a.parts, a.ranks), static_cast<float*>(a.log_sum_exp));
}

template <>
void run_op(const DecodeMergeCandidates& a, const Gpu& gpu, cudaStream_t stream) {
  const SelectionRule rule(*a.config);
  const auto groups = static_cast<int>(a.config->num_kv_heads);
  const std::size_t shared_bytes =
      sizeof(std::uint64_t) * static_cast<std::size_t>(rule.num_scored() + rule.select_count * a.ranks);
  launch("merge_candidates", {gpu, stream, dim3(static_cast<unsigned>(a.tokens * groups)), 32, shared_bytes},
         merge_candidates_kernel, StepSchedule(a), groups, rule, Parts<float>(a.scores, a.ranks),
         Parts<std::int32_t>(a.candidates, a.ranks), a.selected);
}

template <>
void run_op(const DecodeWeighParts& a, const Gpu& gpu, cudaStream_t stream) {
  const auto heads = static_cast<int>(a.config->num_q_heads);
  const auto floats = [](const void* pointer) { return static_cast<const float*>(pointer); };
  visit_type(a.dtype, [&]<class T>(std::type_identity<T>) {
    const Weighing<T> weighing{a.config->gate,
                               static_cast<const T*>(a.gate),
                               {floats(a.o_cmp), floats(a.o_win)},
                               {floats(a.lse_cmp), floats(a.lse_win)},
                               {floats(a.all_lse_cmp), floats(a.all_lse_win)},
                               static_cast<float*>(a.out),
                               static_cast<int>(a.config->head_dim_v)};
    launch("weigh_parts", launch_of_pairs(gpu, stream, a.tokens * heads), weigh_parts_kernel<T>, StepSchedule(a), heads,
           weighing);
  });
}

template <>
void run_op(const DecodeMergeParts& a, const Gpu& gpu, cudaStream_t stream) {
  const auto heads = static_cast<int>(a.config->num_q_heads);
  visit_type(a.dtype, [&]<class T>(std::type_identity<T>) {
    const auto parts = [&](const RankParts& of) { return Parts<float>(of, a.ranks); };
    const Merging<T> merging{a.config->gate,
                             static_cast<const T*>(a.gate),
                             parts(a.weighted),
                             {{parts(a.o_slc), parts(a.lse_slc), static_cast<float*>(a.all_lse_slc)},
                              {parts(a.o_win), parts(a.lse_win), static_cast<float*>(a.all_lse_win)}},
                             static_cast<const float*>(a.o_cmp),
                             static_cast<T*>(a.out),
                             static_cast<int>(a.config->head_dim_v)};
    launch("merge_parts", launch_of_pairs(gpu, stream, a.tokens * heads), merge_parts_kernel<T>, StepSchedule(a), heads,
           merging);
  });
}

}  // namespace cpnsa::cuda::decode
