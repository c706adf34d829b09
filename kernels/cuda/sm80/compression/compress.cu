#include "kernels/cuda/common/check.hpp"
#include "kernels/cuda/common/handles.hpp"
#include "kernels/cuda/common/packs.cuh"
#include "kernels/cuda/sm80/compression/compress_rows.hpp"
#include "kernels/cuda/sm80/compression/hidden_layer.cuh"
#include "kernels/cuda/sm80/run_op.hpp"

namespace cpnsa::cuda::sm80 {
namespace {

constexpr int block_threads = 256;

// A thread block: one summary, a thread eight channels of one head. Tokens are added in ascending order.
template <class T>
__global__ void __launch_bounds__(block_threads)
    mean_kernel(const SummaryLocation* __restrict__ locations, int heads, int tokens, int packs,
                const T* __restrict__ input, const T* __restrict__ pos, T* __restrict__ summaries) {
  const SummaryLocation location = locations[blockIdx.x];
  const std::int64_t width = static_cast<std::int64_t>(heads) * packs * pack_items;
  for (int i = static_cast<int>(threadIdx.x); i < heads * packs; i += block_threads) {
    const int head = i / packs, pack = i % packs;
    float sum[pack_items] = {};
    for (int token = 0; token < tokens; ++token) {
      const LayerPack<T> x = load_pack(input + (location.source + token) * width, i);
      LayerPack<T> p;
      if (pos) p = load_pack(pos + (static_cast<std::int64_t>(head) * tokens + token) * packs * pack_items, pack);
#pragma unroll
      for (int c = 0; c < pack_items; ++c) sum[c] += pos ? widen(x.item[c]) + widen(p.item[c]) : widen(x.item[c]);
    }
    LayerPack<T> mean;
#pragma unroll
    for (int c = 0; c < pack_items; ++c) mean.item[c] = narrow<T>(sum[c] / static_cast<float>(tokens));
    store_pack(summaries + location.summary * width, i, mean);
  }
}

// summaries [summary, head] = y + bias.
template <class T>
__global__ void __launch_bounds__(block_threads)
    write_summaries_kernel(const SummaryChunk chunk, int heads, int dim, const float* __restrict__ y,
                           const T* __restrict__ bias, T* __restrict__ summaries) {
  const std::int64_t head = blockIdx.y;
  const float* const source = y + (head * chunk.rows + blockIdx.x) * dim;
  T* const destination = summaries + (chunk.locations[blockIdx.x].summary * heads + head) * dim;
  for (int c = static_cast<int>(threadIdx.x); c < dim; c += block_threads)
    destination[c] = narrow<T>(source[c] + (bias ? widen(bias[head * dim + c]) : 0.0f));
}

template <class T>
class Forward {
 public:
  Forward(const Compress& arguments, Handles& handles, cudaStream_t stream)
      : a_(arguments),
        sizes_(*a_.config, a_.dtype, a_.dim, a_.hidden),
        products_(handles.products),
        stream_(stream),
        summaries_(summaries_of(a_.runs)) {}

  void run() {
    if (summaries_ == 0) return;
    Arena arena(a_.scratch);
    const CompressBuffers buffers(arena, sizes_, summaries_);
    locate_summaries(a_.runs, a_.config->compress_stride, summaries_, buffers.locations, stream_);
    if (sizes_.compressor == Compressor::mean) return mean(buffers);
    for_each_chunk(buffers.locations, summaries_, max_chunk(sizes_, products_), [&](const SummaryChunk& chunk) {
      gather_inputs(chunk, sizes_, a_.input, a_.parameters.pos, buffers.inputs, stream_);
      if (sizes_.compressor == Compressor::linear) {
        products_.run(sizes_.first_layer(chunk.rows), buffers.inputs, a_.parameters.weight, buffers.z, stream_);
        write(chunk, buffers.z, nullptr);
      } else {
        products_.run(sizes_.first_layer(chunk.rows), buffers.inputs, a_.parameters.w1, buffers.z, stream_);
        activate_hidden(chunk, buffers);
        products_.run(sizes_.second_layer(chunk.rows), buffers.hidden, a_.parameters.w2, buffers.y, stream_);
        write(chunk, buffers.y, a_.parameters.b2);
      }
    });
  }

 private:
  int heads() const { return static_cast<int>(sizes_.heads); }

  void mean(const CompressBuffers& buffers) {
    mean_kernel<T><<<static_cast<unsigned>(summaries_), block_threads, 0, stream_>>>(
        buffers.locations, heads(), static_cast<int>(a_.config->compress_block), static_cast<int>(a_.dim / pack_items),
        static_cast<const T*>(a_.input), static_cast<const T*>(a_.parameters.pos), static_cast<T*>(a_.summaries));
    check_launch("mean");
  }

  void activate_hidden(const SummaryChunk& chunk, const CompressBuffers& buffers) {
    const dim3 blocks(static_cast<unsigned>(chunk.rows), static_cast<unsigned>(sizes_.heads));
    hidden_kernel<T, false><<<blocks, hidden_threads, 0, stream_>>>(
        a_.config->activation, static_cast<int>(sizes_.columns), buffers.z, static_cast<const T*>(a_.parameters.b1),
        static_cast<T*>(buffers.hidden));
    check_launch("hidden");
  }

  void write(const SummaryChunk& chunk, const float* y, const void* bias) {
    const dim3 blocks(static_cast<unsigned>(chunk.count), static_cast<unsigned>(sizes_.heads));
    write_summaries_kernel<T><<<blocks, block_threads, 0, stream_>>>(
        chunk, heads(), static_cast<int>(a_.dim), y, static_cast<const T*>(bias), static_cast<T*>(a_.summaries));
    check_launch("write_summaries");
  }

  const Compress& a_;
  CompressSizes sizes_;
  MatrixProducts& products_;
  cudaStream_t stream_;
  std::int64_t summaries_;
};

}  // namespace

template <>
void run_op(const Compress& a, Handles& handles, cudaStream_t stream) {
  visit_type(a.dtype, [&]<class T>(std::type_identity<T>) { Forward<T>(a, handles, stream).run(); });
}

}  // namespace cpnsa::cuda::sm80
