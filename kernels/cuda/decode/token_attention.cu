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

/// Parts [begin, end) of a branch.
struct PartRange {
  int begin;
  int end;
};

template <class T>
struct Problem {
  const T* q;
  Branch<T> branches[2];         ///< selected, window
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
  int window_keys;  ///< of the window's parts

  /// The parts of a branch that have keys for a row; the others lie before token 0 or belong to no selected block.
  __device__ PartRange parts_of(int branch, int position) const {
    const int parts = branches[branch].parts;
    if (branch == 1) return {min(parts, max(0, window_keys - 1 - position) / part_keys), parts};
    const int keys = min(select_count, position / select_block + 1) * select_block;
    return {0, min(parts, (keys + part_keys - 1) / part_keys)};
  }
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

  /// `part` counts the parts of both branches.
  __device__ void run(const RowHead& row, int part) {
    if (!a_.parts.split) {
      for (int first = 0; first < a_.heads_per_group; first += Shape::rows) {
        load_queries(row, first);
        finish(row, first, [&](int branch, PartRange parts, State& total) {
          for (int i = parts.begin; i < parts.end; ++i) {
            attend(row, first, branch, i);
            attention_.add_to(total);
          }
        });
      }
      return;
    }
    const int branch = part < a_.branches[0].parts ? 0 : 1, own_part = part - a_.branches[branch].first_part;
    const PartRange slc = a_.parts_of(0, row.position), win = a_.parts_of(1, row.position);
    const PartRange own = branch == 0 ? slc : win;
    if (own_part < own.begin || own_part >= own.end) return;
    for (int first = 0; first < a_.heads_per_group; first += Shape::rows) {
      load_queries(row, first);
      attend(row, first, branch, own_part);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::int64_t pair = pair_of(row, first, half), at = pair * a_.parts.parts + part;
        if (pair >= 0) attention_.store(half, d_v(), a_.parts.out + at * d_v(), a_.parts.state + at);
      }
    }
    unsigned* const counter = a_.schedule.token_counters + row.token * a_.num_kv_heads + row.group;
    if (!arrive_last(counter, slc.end - slc.begin + win.end - win.begin)) return;
    for (int first = 0; first < a_.heads_per_group; first += Shape::rows)
      finish(row, first, [&](int branch_index, PartRange parts, State& total) {
        merge(row, first, a_.branches[branch_index].first_part + parts.begin, parts.end - parts.begin, total);
      });
  }

 private:
  __device__ __forceinline__ int d_v() const {
    return a_.branches[0].pools.d_v;
  }
  __device__ __forceinline__ std::int64_t first_pair(const RowHead& row) const {
    return static_cast<std::int64_t>(row.token) * a_.num_q_heads + row.group * a_.heads_per_group;
  }
  /// row * H + head of one of the thread's rows; -1: none.
  __device__ __forceinline__ std::int64_t pair_of(const RowHead& row, int first, int half) const {
    const int head = first + Attention::row(half);
    return head < a_.heads_per_group ? first_pair(row) + head : -1;
  }

  __device__ __forceinline__ void load_queries(const RowHead& row, int first) {
    const int d_qk = a_.branches[0].pools.d_qk;
    attention_.load_queries(d_qk, a_.q, [&](int r) -> const T* {
      return first + r < a_.heads_per_group ? a_.q + (first_pair(row) + first + r) * d_qk : nullptr;
    });
  }

  __device__ __forceinline__ void attend(const RowHead& row, int first, int branch_index, int part) {
    const Branch<T>& branch = a_.branches[branch_index];
    const int limits[2] = {pair_of(row, first, 0) < 0 ? 0 : INT_MAX, pair_of(row, first, 1) < 0 ? 0 : INT_MAX};
    const int keys = branch_index == 0 ? a_.select_count * a_.select_block : a_.window_keys;
    const std::int32_t* const selected =
        a_.selected + (static_cast<std::int64_t>(row.token) * a_.num_kv_heads + row.group) * a_.select_count;
    const auto token_of = [&](int key) {
      if (branch_index == 1) return row.position - a_.window_keys + 1 + key;
      const int block = selected[key / a_.select_block];
      return block < 0 || block > row.position / a_.select_block ? -1 : block * a_.select_block + key % a_.select_block;
    };
    attention_.attend(
        of_head(branch.pools, row.group), part * part_keys, min((part + 1) * part_keys, keys),
        [&](int key) {
          const int token = token_of(key);
          return token >= 0 && token <= row.position ? branch.pages.find(row.slot, token) : PageRow{-1, 0};
        },
        limits, NoScores{});
  }

  /// Adds `count` parts from number `first_part` on, of both branches.
  __device__ __forceinline__ void merge(const RowHead& row, int first, int first_part, int count, State& total) const {
    const float* out[2];
    const float2* states[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int64_t pair = pair_of(row, first, half), at = pair * a_.parts.parts + first_part;
      out[half] = pair < 0 ? nullptr : a_.parts.out + at * d_v();
      states[half] = pair < 0 ? nullptr : a_.parts.state + at;
    }
    Attention::add_stored(total, d_v(), out, states, count);
  }

  /// Writes the results of some rows: `sum(branch, parts, total)` adds a branch's parts. One branch after the other, so
  /// that one running result is in registers.
  template <class Sum>
  __device__ __forceinline__ void finish(const RowHead& row, int first, Sum&& sum) {
    float gated[Shape::value_columns][4] = {};
    if (a_.out) {
      for_each_channel(row, first, [&](std::int64_t pair, int half, int n) {
        const float2 cmp = *reinterpret_cast<const float2*>(a_.o_cmp + pair * d_v() + Attention::channel(n));
        const float g = gate(pair, 0);
        gated[n][2 * half] = __fmul_rn(g, cmp.x), gated[n][2 * half + 1] = __fmul_rn(g, cmp.y);
      });
    }
#pragma unroll 1
    for (int branch = 0; branch < 2; ++branch) {
      if (a_.branches[branch].parts == 0) continue;
      State total;
      sum(branch, a_.parts_of(branch, row.position), total);
      float* const out = a_.branches[branch].out;
      const float factors[2] = {total.inverse_sum(0), total.inverse_sum(1)};
      for_each_channel(row, first, [&](std::int64_t pair, int half, int n) {
        const float2 o{__fmul_rn(total.o[n][2 * half], factors[half]),
                       __fmul_rn(total.o[n][2 * half + 1], factors[half])};
        if (out) *reinterpret_cast<float2*>(out + pair * d_v() + Attention::channel(n)) = o;
        if (a_.out) {
          const float g = gate(pair, 1 + branch);
          gated[n][2 * half] = __fmaf_rn(g, o.x, gated[n][2 * half]);
          gated[n][2 * half + 1] = __fmaf_rn(g, o.y, gated[n][2 * half + 1]);
        }
      });
      write_log_sum_exp(row, first, a_.branches[branch].log_sum_exp, total);
    }
    if (a_.out)
      for_each_channel(row, first, [&](std::int64_t pair, int half, int n) {
        *reinterpret_cast<std::uint32_t*>(a_.out + pair * d_v() + Attention::channel(n)) =
            narrow2<T>(gated[n][2 * half], gated[n][2 * half + 1]);
      });
  }

  /// Calls function(row * H + head, half, n) for the thread's pairs of channels that exist.
  template <class Function>
  __device__ __forceinline__ void for_each_channel(const RowHead& row, int first, Function&& function) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int64_t pair = pair_of(row, first, half);
      if (pair < 0) continue;
#pragma unroll
      for (int n = 0; n < Shape::value_columns; ++n)
        if (Attention::channel(n) < d_v()) function(pair, half, n);
    }
  }

  __device__ __forceinline__ float gate(std::int64_t pair, int branch) const {
    return gate_value(a_.gate_kind, widen(a_.gate[3 * pair + branch]));
  }

  __device__ __forceinline__ void write_log_sum_exp(const RowHead& row, int first, float* log_sum_exp,
                                                    const State& total) const {
    if (!log_sum_exp || Attention::warp() != 0 || Attention::lane() % 4 != 0) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int64_t pair = pair_of(row, first, half);
      if (pair >= 0) log_sum_exp[pair] = total.log_sum_exp(half);
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
  const int parts = a.parts.split ? a.branches[0].parts + a.branches[1].parts : 1;
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
  visit_split_shape<2>(a, config.heads_per_group(), [&]<class Shape>(std::type_identity<Shape>) {
    using T = typename Shape::T;
    const TokenParts count(config, a.max_length, a.selected_branch, a.window_branch);
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
                             {branch(a.slc, a.o_slc, a.lse_slc, 0, count.selected),
                              branch(a.win, a.o_win, a.lse_win, count.selected, count.window)},
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
                             count.window_keys};
    const std::int64_t items =
        a.tokens * config.num_kv_heads * (scratch.parts.split ? count.selected + count.window : 1);
    launch("token_attention",
           {gpu, stream, persistent_blocks(gpu, items, resident_blocks<Shape>()), Shape::threads, Shape::shared_bytes},
           token_attention_kernel<Shape>, problem);
  });
}

}  // namespace cpnsa::cuda::decode
