// DecodeTokenAttention: the selected and the window branch of one row and KV head, in parts of part_keys keys. The last
// thread block that arrives merges the parts, ascending, and does the gate.

#include "kernels/cuda/common/gate.cuh"
#include "kernels/cuda/decode/run_op.hpp"
#include "kernels/cuda/decode/scratch.hpp"
#include "kernels/cuda/decode/split_launch.cuh"

namespace cpnsa::cuda::decode {
namespace {

/// One branch: its cache and where its results go (null: not wanted).
template <class T>
struct Branch {
  KeyPools<T> pools;
  TokenPages pages;
  float* out;
  float* log_sum_exp;
  int first_part;
  int parts;
};

template <class T>
struct Problem {
  const T* q;
  Branch<T> slc;
  Branch<T> win;
  const std::int32_t* selected;  ///< [tokens, G, n]
  StepSchedule schedule;
  PartialRows parts;
  GateKind gate_kind;
  const T* gate;       ///< with `out`
  const float* o_cmp;  ///< with `out`
  T* out;              ///< null: no gate
  float scale_log2;
  int num_q_heads;
  int num_kv_heads;
  int heads_per_group;
  int select_block;
  int select_count;
  int window;
};

/// A row and KV head.
struct RowHead {
  int token;  ///< row of the step's tensors
  int slot;
  int position;
  int group;
};

template <class Shape>
class Kernel {
 public:
  using T = typename Shape::T;
  using Attention = SplitAttention<Shape>;
  using State = typename Attention::State;

  __device__ Kernel(const Problem<T>& problem, unsigned char* shared)
      : a_(problem), attention_(shared, problem.scale_log2) {}

  __device__ void run(const RowHead& row, int part) {
    const int parts = a_.slc.parts + a_.win.parts;
    for (int first = 0; first < a_.heads_per_group; first += Shape::rows) {
      attention_.load_queries(a_.slc.pools.d_qk, a_.q, [&](int r) -> const T* {
        return first + r < a_.heads_per_group ? a_.q + (first_pair(row) + first + r) * a_.slc.pools.d_qk : nullptr;
      });
      if (a_.parts.split) {
        attend(row, first, part);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const std::int64_t own = pair(row, first, half), at = own * a_.parts.parts + part;
          if (own >= 0) attention_.store(half, d_v(), a_.parts.out + at * d_v(), a_.parts.state + at);
        }
      } else {
        State slc, win;
        for (int i = 0; i < parts; ++i) {
          attend(row, first, i);
          attention_.add_to(i < a_.slc.parts ? slc : win);
        }
        finish(row, first, slc, win);
      }
    }
    if (!a_.parts.split || !arrive_last(a_.schedule.token_counters + row.token * a_.num_kv_heads + row.group, parts))
      return;
    for (int first = 0; first < a_.heads_per_group; first += Shape::rows) {
      State slc, win;
      merge(row, first, a_.slc, slc);
      merge(row, first, a_.win, win);
      finish(row, first, slc, win);
    }
  }

 private:
  __device__ __forceinline__ int d_v() const {
    return a_.slc.pools.d_v;
  }
  __device__ __forceinline__ std::int64_t first_pair(const RowHead& row) const {
    return static_cast<std::int64_t>(row.token) * a_.num_q_heads + row.group * a_.heads_per_group;
  }
  /// row * H + head of one of the thread's rows; -1: none.
  __device__ __forceinline__ std::int64_t pair(const RowHead& row, int first, int half) const {
    const int head = first + Attention::row(half);
    return head < a_.heads_per_group ? first_pair(row) + head : -1;
  }

  __device__ __forceinline__ void attend(const RowHead& row, int first, int part) {
    const int limits[2] = {pair(row, first, 0) < 0 ? 0 : INT_MAX, pair(row, first, 1) < 0 ? 0 : INT_MAX};
    if (part < a_.slc.parts) {
      const std::int32_t* const selected =
          a_.selected + (static_cast<std::int64_t>(row.token) * a_.num_kv_heads + row.group) * a_.select_count;
      attention_.attend(
          of_head(a_.slc.pools, row.group), part * part_keys,
          min((part + 1) * part_keys, a_.select_count * a_.select_block),
          [&](int key) {
            const int block = selected[key / a_.select_block];
            if (block < 0 || block > row.position / a_.select_block) return PageRow{-1, 0};
            const int token = block * a_.select_block + key % a_.select_block;
            return token <= row.position ? a_.slc.pages.find(row.slot, token) : PageRow{-1, 0};
          },
          limits, NoScores{});
    } else {
      const int begin = (part - a_.slc.parts) * part_keys;
      attention_.attend(
          of_head(a_.win.pools, row.group), begin, min(begin + part_keys, a_.window),
          [&](int key) {
            const int token = row.position - a_.window + 1 + key;
            return token >= 0 ? a_.win.pages.find(row.slot, token) : PageRow{-1, 0};
          },
          limits, NoScores{});
    }
  }

  __device__ __forceinline__ void merge(const RowHead& row, int first, const Branch<T>& branch, State& total) const {
    const float* out[2];
    const float2* states[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int64_t own = pair(row, first, half), at = own * a_.parts.parts + branch.first_part;
      out[half] = own < 0 ? nullptr : a_.parts.out + at * d_v();
      states[half] = own < 0 ? nullptr : a_.parts.state + at;
    }
    Attention::add_stored(total, d_v(), out, states, branch.parts);
  }

  __device__ __forceinline__ void finish(const RowHead& row, int first, const State& slc, const State& win) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int64_t own = pair(row, first, half);
      if (own < 0) continue;
      write(a_.slc, slc, half, own);
      write(a_.win, win, half, own);
      if (a_.out) combine(slc, win, half, own);
    }
  }

  __device__ __forceinline__ void write(const Branch<T>& branch, const State& state, int half, std::int64_t own) const {
    if (branch.parts == 0) return;
    const float factor = state.inverse_sum(half);
#pragma unroll
    for (int n = 0; n < Shape::value_columns; ++n)
      if (branch.out && Attention::channel(n) < d_v())
        *reinterpret_cast<float2*>(branch.out + own * d_v() + Attention::channel(n)) = {
            state.o[n][2 * half] * factor, state.o[n][2 * half + 1] * factor};
    if (branch.log_sum_exp && Attention::warp() == 0 && Attention::lane() % 4 == 0)
      branch.log_sum_exp[own] = state.log_sum_exp(half);
  }

  __device__ __forceinline__ void combine(const State& slc, const State& win, int half, std::int64_t own) const {
    const T* const gate = a_.gate + 3 * own;
    const float g0 = gate_value(a_.gate_kind, widen(gate[0])), g1 = gate_value(a_.gate_kind, widen(gate[1])),
                g2 = gate_value(a_.gate_kind, widen(gate[2]));
    const float slc_factor = slc.inverse_sum(half), win_factor = win.inverse_sum(half);
#pragma unroll
    for (int n = 0; n < Shape::value_columns; ++n) {
      const int channel = Attention::channel(n);
      if (channel >= d_v()) continue;
      const float2 cmp = *reinterpret_cast<const float2*>(a_.o_cmp + own * d_v() + channel);
      const auto gated = [&](float cmp_value, int i) {
        const float o_slc = __fmul_rn(slc.o[n][2 * half + i], slc_factor),
                    o_win = __fmul_rn(win.o[n][2 * half + i], win_factor);
        return __fmaf_rn(g2, o_win, __fmaf_rn(g1, o_slc, __fmul_rn(g0, cmp_value)));
      };
      *reinterpret_cast<std::uint32_t*>(a_.out + own * d_v() + channel) = narrow2<T>(gated(cmp.x, 0), gated(cmp.y, 1));
    }
  }

  const Problem<T>& a_;
  Attention attention_;
};

template <class Shape>
__global__ void __launch_bounds__(Shape::threads, resident_blocks<Shape>())
    token_attention_kernel(const __grid_constant__ Problem<typename Shape::T> a) {
  extern __shared__ __align__(1024) unsigned char shared[];
  ptx::wait_for_previous_grid();
  ptx::allow_next_grid();
  Kernel<Shape> kernel(a, shared);
  const int parts = a.parts.split ? a.slc.parts + a.win.parts : 1;
  const std::int64_t items = static_cast<std::int64_t>(a.schedule.tokens) * a.num_kv_heads * parts;
  for (std::int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int token = static_cast<int>(item / parts / a.num_kv_heads);
    const Row row = a.schedule.rows[token];
    if (row.slot < 0) continue;
    kernel.run({token, row.slot, row.position, static_cast<int>(item / parts % a.num_kv_heads)},
               static_cast<int>(item % parts));
  }
}

}  // namespace

template <>
void run_op(const DecodeTokenAttention& a, const Gpu& gpu, cudaStream_t stream) {
  const Config& config = *a.config;
  visit_split_shape(a, config.heads_per_group(), [&]<class Shape>(std::type_identity<Shape>) {
    using T = typename Shape::T;
    const TokenParts count(config, a.selected_branch, a.window_branch);
    const auto branch = [&](const PagedRows& rows, void* out, void* log_sum_exp, int first, int parts) {
      return Branch<T>{key_pools<T>(config, rows.k, rows.v, rows.k_rows(), rows.v_rows()),
                       TokenPages(rows),
                       static_cast<float*>(out),
                       static_cast<float*>(log_sum_exp),
                       first,
                       parts};
    };
    const StepSchedule schedule(a);
    const StepScratch scratch(a, true);
    const Problem<T> problem{static_cast<const T*>(a.q),
                             branch(a.slc, a.o_slc, a.lse_slc, 0, count.selected),
                             branch(a.win, a.o_win, a.lse_win, count.selected, count.window),
                             a.selected,
                             schedule,
                             scratch.parts,
                             config.gate,
                             static_cast<const T*>(a.gate),
                             static_cast<const float*>(a.o_cmp),
                             static_cast<T*>(a.out),
                             scale_log2(config),
                             static_cast<int>(config.num_q_heads),
                             static_cast<int>(config.num_kv_heads),
                             static_cast<int>(config.heads_per_group()),
                             static_cast<int>(config.select_block),
                             static_cast<int>(config.select_count),
                             static_cast<int>(config.window)};
    const std::int64_t items =
        a.tokens * config.num_kv_heads * (scratch.parts.split ? count.selected + count.window : 1);
    launch("token_attention",
           {gpu, stream, persistent_blocks(gpu, items, resident_blocks<Shape>()), Shape::threads, Shape::shared_bytes},
           token_attention_kernel<Shape>, problem);
  });
}

}  // namespace cpnsa::cuda::decode
