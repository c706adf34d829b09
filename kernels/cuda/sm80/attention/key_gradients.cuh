#pragma once

// dK and dV for every GPU: a thread block takes 64 keys of one KV head, a warp 16 of them with their sums in registers,
// and walks the (query, head) rows that see them, in the order in which a row source lists them. It computes Sᵀ and
// dPᵀ, whose fragments are the first operands of dV += Pᵀ dO and dK += dSᵀ Q: no score passes through shared memory.

#include <concepts>
#include <cstdint>
#include <new>
#include <type_traits>

#include "kernels/cuda/sm80/attention/gradient_tile.cuh"

namespace cpnsa::cuda::sm80 {

template <class Element, int Dqk, int Dv>
struct KeyGradientShape {
  using T = Element;
  static constexpr int d_qk = Dqk;
  static constexpr int d_v = Dv;
  static constexpr int keys = keys_per_tile;
  static constexpr int rows = Dqk > 64 ? 32 : 64;
  static constexpr int stages = Dqk > 192 ? 1 : 2;  // they fit the 99 KiB of the smaller GPUs
  /// Where the sums of both do not fit the registers of one warp, half of the warps have dK and half dV.
  static constexpr bool separate = Dqk + Dv > 320;
  static constexpr int warps = keys / 16 * (separate ? 2 : 1);
  static constexpr int threads = warps * 32;
  using Keys = SwizzledTile<keys, Dqk>;
  using Values = SwizzledTile<keys, Dv>;
  using Queries = SwizzledTile<rows, Dqk>;
  using Douts = SwizzledTile<rows, Dv>;
  /// A stage: the rows' queries, output gradients, log-sum-exps, weights, deltas, visible keys.
  static constexpr int statistic_bytes = rows * 4;
  static constexpr int statistics_at = Queries::bytes + Douts::bytes;
  static constexpr int visible_at = statistics_at + 3 * statistic_bytes;
  static constexpr int stage_bytes = visible_at + rows * static_cast<int>(sizeof(KeyRange));
  static_assert(stage_bytes % 128 == 0 && sizeof(KeyRange) == 8);
  static constexpr int shared_bytes = Keys::bytes + Values::bytes + stages * stage_bytes;
};

/// The (query, head) rows that see a thread block's keys, a tile of Shape::rows at a time.
template <class Source>
concept RowSource = requires(Source source, const Source& at, int index) {
  { source.next() } -> std::same_as<bool>;               // moves to the next tile; false past the last, for all threads
  { at.head_row(index) } -> std::same_as<std::int64_t>;  // row * H + head of a row of the tile, -1 past its end
  { at.visible(index) } -> std::same_as<KeyRange>;       // keys of the block's 64 that an existing row sees
};

/// Sums of dK and dV of the lane's two keys, in fragments. Where a warp has one of the two they are the same registers.
template <class Shape>
struct KeyGradientSums {
  float dk[Shape::d_qk / 8][4] = {};
  float dv[Shape::separate ? 1 : Shape::d_v / 8][4] = {};

  __device__ __forceinline__ auto& values() {
    if constexpr (Shape::separate) {
      static_assert(Shape::d_qk == Shape::d_v);
      return dk;
    } else {
      return dv;
    }
  }
};

template <class Shape>
class KeyGradients {
 public:
  using T = typename Shape::T;

  /// `memory`: Shape::shared_bytes of shared memory, 128-byte aligned.
  __device__ KeyGradients(const GradientProblem<T>& problem, unsigned char* memory)
      : a_(problem),
        memory_(memory),
        shared_(ptx::shared_address(memory)),
        first_key_(static_cast<int>(threadIdx.x) / 32 % (Shape::keys / 16) * 16),
        has_keys_(!Shape::separate || threadIdx.x < Shape::threads / 2),
        has_values_(!Shape::separate || !has_keys_) {}

  /// key(r), value(r): rows of the block's 64, null past the last. Nothing is waited for.
  template <class KeyRow, class ValueRow>
  __device__ __forceinline__ void load_keys(KeyRow&& key, ValueRow&& value) {
    load_rows<typename Shape::Keys, Shape::threads>(shared_, a_.d_qk, a_.q, key);
    load_rows<typename Shape::Values, Shape::threads>(shared_ + Shape::Keys::bytes, a_.d_v, a_.q, value);
  }

  /// Takes in all rows of Source(arguments...). The source lies in shared memory, because registers are short; one
  /// thread moves it on while the others work on rows that have been loaded.
  template <RowSource Source, class... Arguments>
  __device__ __forceinline__ void walk(const Arguments&... arguments) {
    static_assert(std::is_trivially_destructible_v<Source>);
    __shared__ alignas(16) unsigned char source_memory[sizeof(Source)];
    __shared__ bool moved;
    auto& source = *reinterpret_cast<Source*>(source_memory);
    const bool moves = threadIdx.x == 0;
    if (moves) moved = (::new (static_cast<void*>(source_memory)) Source(arguments...))->next();
    __syncthreads();
    bool here = moved, ahead = false;  // whether there is a tile `index`, and one after it that is not loaded yet
    if (here)
      load_stage(source, 0);
    else
      ptx::cp_async_wait<0>();
    if constexpr (Shape::stages > 1) {
      __syncthreads();
      if (moves) moved = source.next();
      __syncthreads();
      ahead = moved;
    }
    for (int index = 0; here; ++index) {
      if (ahead) {
        load_stage(source, index + 1);
        ptx::cp_async_wait<1>();
      } else {
        ptx::cp_async_wait<0>();
      }
      __syncthreads();
      if (moves) moved = source.next();
      add_rows(index % Shape::stages);
      __syncthreads();
      if constexpr (Shape::stages > 1) {
        here = ahead;
        ahead = moved;
      } else {
        here = moved;
        if (here) load_stage(source, index + 1);
      }
    }
  }

  /// dkey(r), dvalue(r): where the gradient of the block's key r is summed, null past the last key.
  template <class KeyRow, class ValueRow>
  __device__ __forceinline__ void add_to(KeyRow&& dkey, ValueRow&& dvalue) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int key = first_key_ + lane / 4 + 8 * half;
      if (has_keys_) add_row(sums_.dk, half, a_.d_qk, a_.scale, dkey(key));
      if (has_values_) add_row(sums_.values(), half, a_.d_v, 1.f, dvalue(key));
    }
  }

 private:
  __device__ static int stage_offset(int stage) {
    return Shape::Keys::bytes + Shape::Values::bytes + stage * Shape::stage_bytes;
  }

  template <class Source>
  __device__ __forceinline__ void load_stage(const Source& source, int index) {
    const int offset = stage_offset(index % Shape::stages);
    const std::uint32_t stage = shared_ + offset;
    load_rows<typename Shape::Queries, Shape::threads>(stage, a_.d_qk, a_.q, [&](int r) -> const T* {
      const std::int64_t row = source.head_row(r);
      return row >= 0 ? a_.q + row * a_.d_qk : nullptr;
    });
    load_rows<typename Shape::Douts, Shape::threads>(stage + Shape::Queries::bytes, a_.d_v, a_.q,
                                                     [&](int r) -> const T* {
                                                       const std::int64_t row = source.head_row(r);
                                                       return row >= 0 ? a_.dout + row * a_.d_v : nullptr;
                                                     });
    if (threadIdx.x < Shape::rows) {
      const int r = threadIdx.x;
      const std::int64_t row = source.head_row(r);
      const bool exists = row >= 0;
      const std::uint32_t at = stage + Shape::statistics_at + r * 4;
      ptx::cp_async_4(at, exists ? a_.log_sum_exp + row : a_.log_sum_exp, exists);
      ptx::cp_async_4(at + Shape::statistic_bytes, exists ? a_.weights + row : a_.weights, exists);
      ptx::cp_async_4(at + 2 * Shape::statistic_bytes, exists ? a_.deltas + row : a_.deltas, exists);
      reinterpret_cast<KeyRange*>(memory_ + offset + Shape::visible_at)[r] =
          exists ? source.visible(r) : KeyRange{0, 0};
    }
    ptx::cp_async_commit();
  }

  // Returns whether some row of the stage sees a key of the warp's 16.
  __device__ __forceinline__ bool wanted(const KeyRange* visible) const {
    bool sees = false;
    for (int r = threadIdx.x % 32; r < Shape::rows; r += 32)
      sees |= visible[r].begin < first_key_ + 16 && visible[r].end > first_key_;
    return __any_sync(0xffffffffu, sees);
  }

  __device__ __forceinline__ void add_rows(int stage) {
    const int lane = threadIdx.x % 32, offset = stage_offset(stage);
    const auto* const visible = reinterpret_cast<const KeyRange*>(memory_ + offset + Shape::visible_at);
    if (!wanted(visible)) return;
    const auto* const sums = reinterpret_cast<const float*>(memory_ + offset + Shape::statistics_at);
    const float* const weights = sums + Shape::rows;
    const float* const deltas = weights + Shape::rows;
    const std::uint32_t queries = shared_ + offset, douts = queries + Shape::Queries::bytes;

    float p[Shape::rows / 8][4], ds[Shape::rows / 8][4] = {};
    multiply_keys<T, typename Shape::Keys, typename Shape::Queries>(p, shared_, first_key_, queries);
    if (has_keys_)
      multiply_keys<T, typename Shape::Values, typename Shape::Douts>(ds, shared_ + Shape::Keys::bytes, first_key_,
                                                                      douts);
#pragma unroll
    for (int n = 0; n < Shape::rows / 8; ++n)
#pragma unroll
      for (int column = 0; column < 2; ++column) {
        const int row = n * 8 + lane % 4 * 2 + column;
        const float sum_log2 = sums[row] * log2_e, weight = weights[row], delta = deltas[row];
        const KeyRange range = sums[row] == -INFINITY ? KeyRange{0, 0} : visible[row];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int i = 2 * half + column, key = first_key_ + lane / 4 + 8 * half;
          const bool seen = key >= range.begin && key < range.end;
          const ScoreGradient score(p[n][i], a_.scale_log2, sum_log2, weight * ds[n][i], delta, seen);
          p[n][i] = weight * score.p;
          ds[n][i] = score.ds;
        }
      }
    if (has_values_) multiply_values<T, typename Shape::Douts>(sums_.values(), p, douts);
    if (has_keys_) multiply_values<T, typename Shape::Queries>(sums_.dk, ds, queries);
  }

  template <int Columns>
  __device__ __forceinline__ static void add_row(const float (&sums)[Columns][4], int half, int elements, float factor,
                                                 float* row) {
    if (!row) return;
#pragma unroll
    for (int n = 0; n < Columns; ++n) {
      const int column = n * 8 + threadIdx.x % 4 * 2;
      if (column < elements) add2(row + column, sums[n][2 * half] * factor, sums[n][2 * half + 1] * factor);
    }
  }

  const GradientProblem<T>& a_;
  unsigned char* memory_;
  std::uint32_t shared_;
  int first_key_;
  bool has_keys_;
  bool has_values_;
  KeyGradientSums<Shape> sums_;
};

}  // namespace cpnsa::cuda::sm80
