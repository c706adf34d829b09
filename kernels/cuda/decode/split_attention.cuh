#pragma once

// Attention of a few (query, head) rows to one part of their keys. A fragment of 16 rows belongs to four warps, which
// divide the keys of a tile among them for the scores and the channels for the sum of values, so that one query's heads
// keep a thread block busy. A row's result depends on its keys and their numbers alone: not on other rows, and not on
// the number of fragments.

#include <climits>
#include <cmath>
#include <cstdint>

#include "kernels/cuda/common/numeric.cuh"
#include "kernels/cuda/common/swizzled_tile.cuh"
#include "kernels/cuda/decode/pages.hpp"

namespace cpnsa::cuda::decode {

/// Compile-time shape: head dimensions that are padded with zeros, and fragments of 16 rows per thread block.
template <class Element, int Dqk, int Dv, int Fragments>
struct SplitShape {
  using T = Element;
  static constexpr int d_qk = Dqk;
  static constexpr int d_v = Dv;
  static constexpr int fragments = Fragments;
  static constexpr int fragment_rows = 16;
  static constexpr int rows = fragments * fragment_rows;
  static constexpr int warps_per_fragment = 4;
  static constexpr int fragment_threads = warps_per_fragment * 32;
  static constexpr int threads = fragments * fragment_threads;
  static constexpr int keys = 32;  ///< of a tile, 8 for each warp of a fragment
  static constexpr int stages = Dv > 128 ? 2 : 4;
  static constexpr int key_steps = Dqk / 32;
  static constexpr int value_columns = Dv / 32;  ///< 8 channels each, of a warp
  /// True if a warp keeps its fragment of queries; if not, it reads it for each tile, because registers are too few.
  static constexpr bool keeps_queries = Dqk < 256;
  static constexpr int parts_at_a_time = Dv > 64 || Fragments > 2 ? 2 : 4;  ///< that a merge reads
  using Queries = SwizzledTile<rows, Dqk>;
  using Keys = SwizzledTile<keys, Dqk>;
  using Values = SwizzledTile<keys, Dv>;
  static constexpr int stage_bytes = Keys::bytes + Values::bytes;
  static constexpr int probability_bytes = 80;  ///< of a row: 32 probabilities; rows lie in different banks
  static constexpr int shared_bytes = Queries::bytes + stages * stage_bytes + rows * probability_bytes;
};

/// The rows of keys and values that a tile is loaded from.
template <class T>
struct KeyPools {
  const T* k;  ///< [pages, k_rows, G, d_qk], of the KV head
  const T* v;  ///< [pages, v_rows, G, d_v], of the KV head
  int k_rows;
  int v_rows;
  int k_stride;  ///< G d_qk
  int v_stride;
  int d_qk;
  int d_v;

  __device__ const T* key(PageRow at) const {
    return at.id < 0 ? nullptr : k + (static_cast<std::int64_t>(at.id) * k_rows + at.row) * k_stride;
  }
  __device__ const T* value(PageRow at) const {
    return at.id < 0 ? nullptr : v + (static_cast<std::int64_t>(at.id) * v_rows + at.row) * v_stride;
  }
};

/// A running softmax of two rows of a fragment and this thread's channels of their outputs: base 2, scores times
/// scale log2(e). `maximum` is -infinity and `sum` 0 while a row has seen no key.
template <int Columns>
struct SplitState {
  float maximum[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0.f, 0.f};
  float o[Columns][4] = {};

  /// Adds a later part. Every merge of two parts of a row is done by this function, with the same instructions, so that
  /// the result has the same bits whichever thread block merges.
  __device__ __forceinline__ void add(int half, float part_maximum, float part_sum, const float (&part)[Columns][2]) {
    if (part_sum == 0.f) return;  // it saw no key: what it multiplied by 0 may be NaN
    const float greatest = fmaxf(maximum[half], part_maximum), base = greatest == -INFINITY ? 0.f : greatest;
    const float own = ptx::exp2_approximate(maximum[half] - base), other = ptx::exp2_approximate(part_maximum - base);
    maximum[half] = greatest;
    sum[half] = __fmaf_rn(sum[half], own, __fmul_rn(part_sum, other));
#pragma unroll
    for (int n = 0; n < Columns; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) o[n][2 * half + i] = __fmaf_rn(o[n][2 * half + i], own, __fmul_rn(part[n][i], other));
  }

  __device__ __forceinline__ float inverse_sum(int half) const {
    return sum[half] == 0.f ? 0.f : 1.f / sum[half];
  }
  /// Natural logarithm; -infinity for a row that saw nothing, NaN for one that saw NaN.
  __device__ __forceinline__ float log_sum_exp(int half) const {
    if (isnan(sum[half])) return sum[half];
    return sum[half] == 0.f ? -INFINITY : (maximum[half] + log2f(sum[half])) * ln_2;
  }
};

/// The scores of a tile are not wanted.
struct NoScores {
  __device__ void write(int, int, float, float) const {}
};

template <class Shape>
class SplitAttention {
 public:
  using T = typename Shape::T;
  using State = SplitState<Shape::value_columns>;
  using Queries = typename Shape::Queries;
  using Keys = typename Shape::Keys;
  using Values = typename Shape::Values;

  /// `shared` has Shape::shared_bytes, at a multiple of 128 bytes.
  __device__ SplitAttention(unsigned char* shared, float scale_log2)
      : queries_(ptx::shared_address(shared)),
        ring_(queries_ + Queries::bytes),
        probabilities_(shared + Queries::bytes + Shape::stages * Shape::stage_bytes),
        scale_log2_(scale_log2) {}

  __device__ static int fragment() { return static_cast<int>(threadIdx.x) / Shape::fragment_threads; }
  __device__ static int warp() { return static_cast<int>(threadIdx.x) / 32 % Shape::warps_per_fragment; }
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }
  /// The thread's rows of the tile are row(0) and row(1), its channels channel(n) and the one after it.
  __device__ static int row(int half) { return fragment() * Shape::fragment_rows + lane() / 4 + 8 * half; }
  __device__ static int channel(int n) { return (warp() * Shape::value_columns + n) * 8 + lane() % 4 * 2; }

  /// Loads the rows of q; `row_pointer(i)` is that of row i, null for a row of zeros.
  template <class RowPointer>
  __device__ void load_queries(int d_qk, const T* readable, RowPointer&& row_pointer) {
    __syncthreads();  // no warp reads the queries before
    load_rows<Queries, Shape::threads>(queries_, d_qk, readable, row_pointer);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    __syncthreads();
    if constexpr (Shape::keeps_queries)
#pragma unroll
      for (int step = 0; step < Shape::d_qk / 16; ++step) read_queries(step, q_[step]);
  }

  /// Attends to the keys [begin, end). `find(key)` says where a key lies; keys of pages that are not held are not seen.
  /// `limits[half]`: the thread's row sees keys below it. The result is in state() and, for every row of the fragment,
  /// in all its threads alike.
  template <class Find, class Scores>
  __device__ void attend(const KeyPools<T>& pools, int begin, int end, Find&& find, const int (&limits)[2],
                         const Scores& scores) {
    __shared__ PageRow places[place_batches][place_batch];  // of the keys of batches, in a ring
    __shared__ float maxima[Shape::fragments][Shape::warps_per_fragment][Shape::fragment_rows];
    __shared__ float sums[Shape::fragments][Shape::warps_per_fragment][Shape::fragment_rows];
    const int tiles = end > begin ? (end - begin + Shape::keys - 1) / Shape::keys : 0;
    const auto find_in_batch = [&](int batch, PageRow(&found)[places_per_thread]) {
#pragma unroll
      for (int i = 0; i < places_per_thread; ++i) {
        const int in_batch = static_cast<int>(threadIdx.x) + i * Shape::threads,
                  key = begin + batch * place_batch + in_batch;
        found[i] = in_batch < place_batch && key < end ? find(key) : PageRow{-1, 0};
      }
    };
    const auto store_batch = [&](int batch, const PageRow(&found)[places_per_thread]) {
#pragma unroll
      for (int i = 0; i < places_per_thread; ++i) {
        const int in_batch = static_cast<int>(threadIdx.x) + i * Shape::threads;
        if (in_batch < place_batch) places[batch % place_batches][in_batch] = found[i];
      }
    };
    const auto places_of = [&](int tile) {
      return places[tile / tiles_per_batch % place_batches] + tile % tiles_per_batch * Shape::keys;
    };
    const auto load = [&](int tile) {
      if (tile < tiles) {
        const std::uint32_t stage = ring_ + tile % Shape::stages * Shape::stage_bytes;
        const PageRow* const at = places_of(tile);
        load_rows<Keys, Shape::threads>(stage, pools.d_qk, pools.k, [&](int r) { return pools.key(at[r]); });
        load_rows<Values, Shape::threads>(stage + Keys::bytes, pools.d_v, pools.v,
                                          [&](int r) { return pools.value(at[r]); });
      }
      ptx::cp_async_commit();
    };

    state_ = State{};
    float sum[2] = {0.f, 0.f};  // of the thread's own keys
    __syncthreads();            // the part before has been read
    PageRow found[places_per_thread], second[places_per_thread];
    find_in_batch(0, found);
    find_in_batch(1, second);
    store_batch(0, found);
    store_batch(1, second);
    __syncthreads();
    for (int tile = 0; tile < Shape::stages - 1; ++tile) load(tile);

    for (int tile = 0; tile < tiles; ++tile) {
      ptx::cp_async_wait<Shape::stages - 2>();
      __syncthreads();  // the tile is there, and the stage of the tile before it is free
      load(tile + Shape::stages - 1);
      // The batch after the next is looked up when a batch begins, and stored when it ends.
      const int batch = tile / tiles_per_batch + 2;
      const bool looks_up = batch * tiles_per_batch < tiles;
      if (looks_up && tile % tiles_per_batch == 0) find_in_batch(batch, found);

      const std::uint32_t stage = ring_ + tile % Shape::stages * Shape::stage_bytes;
      float s[4];
      multiply_keys(stage, s);
      const int first = warp() * 8 + lane() % 4 * 2, key = begin + tile * Shape::keys + first;
      float greatest[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        bool seen[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) seen[i] = key + i < limits[half] && places_of(tile)[first + i].id >= 0;
        if (seen[0] || seen[1]) scores.write(half, key, s[2 * half], s[2 * half + 1]);
#pragma unroll
        for (int i = 0; i < 2; ++i) s[2 * half + i] = seen[i] ? __fmul_rn(s[2 * half + i], scale_log2_) : -INFINITY;
        greatest[half] = row_maximum(fmaxf(s[2 * half], s[2 * half + 1]));
        if (lane() % 4 == 0) maxima[fragment()][warp()][lane() / 4 + 8 * half] = greatest[half];
      }
      meet_fragment();
      float rescale[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float maximum = state_.maximum[half];
#pragma unroll
        for (int w = 0; w < Shape::warps_per_fragment; ++w)
          maximum = fmaxf(maximum, maxima[fragment()][w][lane() / 4 + 8 * half]);
        // (-infinity) - (-infinity) is avoided: a row that has seen nothing subtracts 0 and gets exp2(-infinity) = 0.
        const float base = maximum == -INFINITY ? 0.f : maximum;
        rescale[half] = ptx::exp2_approximate(state_.maximum[half] - base);
        state_.maximum[half] = maximum;
        const float p0 = ptx::exp2_approximate(s[2 * half] - base), p1 = ptx::exp2_approximate(s[2 * half + 1] - base);
        sum[half] = __fmaf_rn(sum[half], rescale[half], __fadd_rn(p0, p1));
        *reinterpret_cast<std::uint32_t*>(probabilities_ + row(half) * Shape::probability_bytes +
                                          first * element_bytes) = narrow2<T>(p0, p1);
      }
      if (looks_up && tile % tiles_per_batch == tiles_per_batch - 1) store_batch(batch, found);
      meet_fragment();
#pragma unroll
      for (int n = 0; n < Shape::value_columns; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) state_.o[n][i] *= rescale[i / 2];
      multiply_values(stage + Keys::bytes);
    }
    ptx::cp_async_wait<0>();

#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 1);
      sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 2);
      if (lane() % 4 == 0) sums[fragment()][warp()][lane() / 4 + 8 * half] = sum[half];
    }
    __syncthreads();
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int w = 0; w < Shape::warps_per_fragment; ++w)
        state_.sum[half] += sums[fragment()][w][lane() / 4 + 8 * half];
  }

  /// Adds the part to a running result.
  __device__ __forceinline__ void add_to(State& total) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float part[Shape::value_columns][2];
#pragma unroll
      for (int n = 0; n < Shape::value_columns; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) part[n][i] = state_.o[n][2 * half + i];
      total.add(half, state_.maximum[half], state_.sum[half], part);
    }
  }

  /// Writes the thread's share of the part of a row: `out` [d_v], `state` (maximum, sum).
  __device__ __forceinline__ void store(int half, int d_v, float* out, float2* state) const {
#pragma unroll
    for (int n = 0; n < Shape::value_columns; ++n)
      if (channel(n) < d_v)
        *reinterpret_cast<float2*>(out + channel(n)) = {state_.o[n][2 * half], state_.o[n][2 * half + 1]};
    if (warp() == 0 && lane() % 4 == 0) *state = {state_.maximum[half], state_.sum[half]};
  }

  /// Adds the thread's share of parts [0, count) of its rows that store() wrote, ascending; null: no such row. Several
  /// parts are read at a time, because a read takes longer than the sum.
  __device__ __forceinline__ static void add_stored(State& total, int d_v, const float* const (&out)[2],
                                                    const float2* const (&state)[2], int count) {
    constexpr int at_a_time = Shape::parts_at_a_time;
    for (int first = 0; first < count; first += at_a_time) {
      float2 states[at_a_time][2];
      float parts[at_a_time][2][Shape::value_columns][2];
#pragma unroll
      for (int i = 0; i < at_a_time; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const bool there = out[half] && first + i < count;
          states[i][half] = there ? __ldcg(state[half] + first + i) : float2{-INFINITY, 0.f};
#pragma unroll
          for (int n = 0; n < Shape::value_columns; ++n) {
            float2 pair{0.f, 0.f};
            if (there && channel(n) < d_v)
              pair = __ldcg(
                  reinterpret_cast<const float2*>(out[half] + static_cast<std::int64_t>(first + i) * d_v + channel(n)));
            parts[i][half][n][0] = pair.x, parts[i][half][n][1] = pair.y;
          }
        }
#pragma unroll
      for (int i = 0; i < at_a_time; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) total.add(half, states[i][half].x, states[i][half].y, parts[i][half]);
    }
  }

 private:
  static constexpr int place_batch = 128;  ///< keys whose places are looked up at once
  static constexpr int place_batches = 3;
  static constexpr int places_per_thread = (place_batch + Shape::threads - 1) / Shape::threads;
  static constexpr int tiles_per_batch = place_batch / Shape::keys;
  static_assert(tiles_per_batch >= Shape::stages);

  __device__ __forceinline__ static void meet_fragment() {
    ptx::named_barrier(1 + fragment(), Shape::fragment_threads);
  }

  __device__ __forceinline__ static float row_maximum(float maximum) {
    maximum = fmaxf(maximum, __shfl_xor_sync(0xffffffffu, maximum, 1));
    return fmaxf(maximum, __shfl_xor_sync(0xffffffffu, maximum, 2));
  }

  /// The fragment's queries in 16 channels.
  __device__ __forceinline__ void read_queries(int step, std::uint32_t (&q)[4]) const {
    const std::uint32_t query =
        queries_ + Queries::offset(fragment() * Shape::fragment_rows + lane() % 16, lane() / 16);
    ptx::ldmatrix_x4(q, Queries::advance(query, 0, step * 2));
  }

  /// S[16 x 8] = Q Kᵀ of the warp's keys.
  __device__ __forceinline__ void multiply_keys(std::uint32_t stage, float (&s)[4]) const {
    const std::uint32_t key = stage + Keys::offset(warp() * 8 + lane() % 8, lane() / 8);
#pragma unroll
    for (float& value : s) value = 0.f;
#pragma unroll
    for (int step = 0; step < Shape::key_steps; ++step) {  // 32 channels each
      std::uint32_t b[4];
      ptx::ldmatrix_x4(b, Keys::advance(key, 0, step * 4));
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if constexpr (Shape::keeps_queries) {
          ptx::mma_m16n8k16<T>(s, q_[2 * step + half], b[2 * half], b[2 * half + 1]);
        } else {
          std::uint32_t q[4];
          read_queries(2 * step + half, q);
          ptx::mma_m16n8k16<T>(s, q, b[2 * half], b[2 * half + 1]);
        }
      }
    }
  }

  /// O[16 x the warp's channels] += P V.
  __device__ __forceinline__ void multiply_values(std::uint32_t values) {
    const std::uint32_t rows =
        ptx::shared_address(probabilities_) +
        static_cast<std::uint32_t>((fragment() * Shape::fragment_rows + lane() % 16) * Shape::probability_bytes +
                                   lane() / 16 * 16);
#pragma unroll
    for (int step = 0; step < Shape::keys / 16; ++step) {  // 16 keys each
      std::uint32_t p[4];
      ptx::ldmatrix_x4(p, rows + static_cast<std::uint32_t>(step * 32));
#pragma unroll
      for (int n = 0; n < Shape::value_columns / 2; ++n) {  // 16 channels each
        std::uint32_t b[4];
        ptx::ldmatrix_x4_transposed(
            b, values + Values::offset(step * 16 + lane() % 16, warp() * Shape::value_columns + 2 * n + lane() / 16));
        ptx::mma_m16n8k16<T>(state_.o[2 * n], p, b[0], b[1]);
        ptx::mma_m16n8k16<T>(state_.o[2 * n + 1], p, b[2], b[3]);
      }
    }
  }

  std::uint32_t queries_;
  std::uint32_t ring_;
  unsigned char* probabilities_;
  float scale_log2_;
  std::uint32_t q_[Shape::keeps_queries ? Shape::d_qk / 16 : 1][4];
  State state_;
};

}  // namespace cpnsa::cuda::decode
