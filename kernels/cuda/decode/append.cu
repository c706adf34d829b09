// DecodeAppend: a thread block copies a row of the step's keys and values to every place of the cache that holds it.

#include <array>

#include "kernels/cuda/decode/launch.cuh"
#include "kernels/cuda/decode/pages.hpp"
#include "kernels/cuda/decode/run_op.hpp"
#include "kernels/cuda/decode/schedule.hpp"

namespace cpnsa::cuda::decode {
namespace {

constexpr int block_threads = 128;
constexpr int max_targets = 6;

/// The keys or the values of a branch.
struct Target {
  const uint4* source;  ///< [tokens, packs]
  uint4* pool;          ///< [pages, rows, packs]
  TokenPages pages;
  int rows;      ///< of a page of the pool
  int packs;     ///< of 16 bytes in a row
  bool is_keys;  ///< pages of keys also hold the tokens after them
};

struct Targets {
  int count = 0;
  int threads_per_row = 1;
  alignas(16) unsigned char items[max_targets * sizeof(Target)];

  void add(const Target& target) { reinterpret_cast<Target*>(items)[count++] = target; }
  __device__ const Target& operator[](int i) const { return reinterpret_cast<const Target*>(items)[i]; }
};

__device__ void copy_row(const Target& target, int token, int id, int row) {
  if (id < 0) return;
  const uint4* const from = target.source + static_cast<std::int64_t>(token) * target.packs;
  uint4* const to = target.pool + (static_cast<std::int64_t>(id) * target.rows + row) * target.packs;
  for (int i = static_cast<int>(threadIdx.x); i < target.packs; i += block_threads) to[i] = from[i];
}

__global__ void __launch_bounds__(block_threads, 8)
    append_kernel(const __grid_constant__ Targets targets, const __grid_constant__ StepSchedule schedule) {
  ptx::wait_for_previous_grid();
  ptx::allow_next_grid();
  const int token = static_cast<int>(blockIdx.x);
  const Row row = schedule.rows[token];
  if (row.slot < 0) return;
  const Target& target = targets[static_cast<int>(blockIdx.y)];
  const TokenPages& pages = target.pages;
  const int page = row.position / pages.page, offset = row.position % pages.page;
  copy_row(target, token, pages.held(row.slot, page), offset);
  if (pages.edge == 0) return;
  if (offset >= pages.page - pages.edge)  // just before the next page
    copy_row(target, token, pages.held(row.slot, page + 1), offset + pages.edge);
  if (target.is_keys && offset < pages.edge)  // just after the page before
    copy_row(target, token, pages.held(row.slot, page - 1), pages.page + pages.edge + offset);
}

}  // namespace

template <>
void run_op(const DecodeAppend& a, const Gpu& gpu, cudaStream_t stream) {
  struct Branch {
    const PagedRows& pages;
    const void* k;
    const void* v;
  };
  const std::array<Branch, 3> branches{
      {{a.cmp, a.k_cmp, a.v_cmp}, {a.slc, a.k_slc, a.v_slc}, {a.win, a.k_win, a.v_win}}};
  const auto packs = [&](std::int64_t dim) { return static_cast<int>(a.config->num_kv_heads * dim / 8); };
  Targets targets;
  for (std::size_t i = 0; i < branches.size(); ++i) {
    const Branch& b = branches[i];
    bool new_k = true, new_v = true;  // branches whose pools are the same memory are written once
    for (std::size_t j = 0; j < i; ++j) {
      new_k = new_k && branches[j].pages.k != b.pages.k;
      new_v = new_v && branches[j].pages.v != b.pages.v;
    }
    const TokenPages pages(b.pages);
    if (new_k)
      targets.add({static_cast<const uint4*>(b.k), static_cast<uint4*>(b.pages.k), pages, pages.k_rows,
                   packs(a.config->head_dim_qk), true});
    if (new_v)
      targets.add({static_cast<const uint4*>(b.v), static_cast<uint4*>(b.pages.v), pages, pages.v_rows,
                   packs(a.config->head_dim_v), false});
  }
  launch("append",
         {gpu, stream, dim3(static_cast<unsigned>(a.tokens), static_cast<unsigned>(targets.count)), block_threads},
         append_kernel, targets, StepSchedule(a));
}

}  // namespace cpnsa::cuda::decode
