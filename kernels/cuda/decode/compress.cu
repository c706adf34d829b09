// DecodeCompress: the summaries that the step's rows complete. A kernel that finds none ends at once.

#include "kernels/cuda/decode/completed.cuh"
#include "kernels/cuda/decode/compress_product.cuh"
#include "kernels/cuda/decode/launch.cuh"
#include "kernels/cuda/decode/run_op.hpp"

namespace cpnsa::cuda::decode {
namespace {

constexpr int mean_threads = 128;

// A work item is a summary's keys or values of all heads; a thread has eight channels at a time, and adds tokens in
// ascending order.
template <class T>
__global__ void __launch_bounds__(mean_threads)
    mean_kernel(const __grid_constant__ CompletedSummaries<T> a, const T* k_pos, const T* v_pos) {
  ptx::wait_for_previous_grid();
  ptx::allow_next_grid();
  const int items = a.places() * 2;
  for (int item = static_cast<int>(blockIdx.x); item < items; item += static_cast<int>(gridDim.x)) {
    const auto side = static_cast<Side>(item % 2);
    const CompletedPlace place = a.place(item / 2, side);
    if (place.at.id < 0) continue;
    const T* const pos = side == Side::keys ? k_pos : v_pos;
    const int packs = a.sides[item % 2].dim / pack_items;
    for (int i = static_cast<int>(threadIdx.x); i < a.num_kv_heads * packs; i += mean_threads) {
      float sum[pack_items] = {};
      for (int token = 0; token < a.length; ++token) {
        const T* const row = a.input_row(place, side, token);
        LayerPack<T> x{}, p{};
        if (row) x = load_pack(row, i);
        if (pos)
          p = load_pack(pos + (static_cast<std::int64_t>(i / packs) * a.length + token) * packs * pack_items,
                        i % packs);
#pragma unroll
        for (int c = 0; c < pack_items; ++c) {
          const float value = row ? widen(x.item[c]) : 0.f;
          sum[c] += pos ? value + widen(p.item[c]) : value;
        }
      }
      LayerPack<T> mean;
#pragma unroll
      for (int c = 0; c < pack_items; ++c) mean.item[c] = narrow<T>(sum[c] / static_cast<float>(a.length));
      store_pack(a.summary_row(place, side), i, mean);
    }
  }
}

}  // namespace

template <>
void run_op(const DecodeCompress& a, const Gpu& gpu, cudaStream_t stream) {
  visit_type(a.dtype, [&]<class T>(std::type_identity<T>) {
    const CompletedSummaries<T> completed(a);
    const std::int64_t places = std::int64_t{completed.schedule.max_completed} * completed.places_per_summary();
    if (a.config->compressor == Compressor::mean) {
      launch("mean", {gpu, stream, persistent_blocks(gpu, 2 * places, 4), mean_threads}, mean_kernel<T>, completed,
             static_cast<const T*>(a.k_parameters.pos), static_cast<const T*>(a.v_parameters.pos));
      return;
    }
    const ProductProblem<T> problem(a, completed);
    const std::int64_t tiles = (places + product_rows - 1) / product_rows;
    launch("compress_product",
           {gpu, stream, persistent_blocks(gpu, tiles * problem.items_per_tile(), 3), product_threads,
            ProductShared<T>::bytes},
           compress_product_kernel<T>, problem);
  });
}

}  // namespace cpnsa::cuda::decode
