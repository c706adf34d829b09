#include "kernels/cuda/common/check.hpp"
#include "kernels/cuda/common/handles.hpp"
#include "kernels/cuda/common/packs.cuh"
#include "kernels/cuda/sm80/compression/compress_rows.hpp"
#include "kernels/cuda/sm80/compression/hidden_layer.cuh"
#include "kernels/cuda/sm80/run_op.hpp"

namespace cpnsa::cuda::sm80 {
namespace {

constexpr int block_threads = 256;
constexpr int warp_threads = 32;
constexpr int warps = block_threads / warp_threads;

// The chunk's rows of dsummaries times `scale`, [G, chunk, d], in float32 and in the layer's type (where wanted). A
// thread block: one summary of one head.
template <class T>
__global__ void __launch_bounds__(block_threads)
    gather_dsummaries_kernel(const SummaryChunk chunk, int heads, int dim, float scale,
                             const float* __restrict__ dsummaries, float* __restrict__ dy, T* __restrict__ dy_narrow) {
  const std::int64_t head = blockIdx.y, row = blockIdx.x;
  const std::int64_t destination = (head * chunk.rows + row) * dim;
  const bool used = row < chunk.count;
  const std::int64_t source = used ? (chunk.locations[row].summary * heads + head) * dim : 0;
  for (int c = static_cast<int>(threadIdx.x); c < dim; c += block_threads) {
    const float value = used ? dsummaries[source + c] * scale : 0.0f;
    dy[destination + c] = value;
    if (dy_narrow) dy_narrow[destination + c] = narrow<T>(value);
  }
}

// dz = dh slope, in float32 over dh and in the layer's type. Rows past the chunk are zero.
template <class T>
__global__ void __launch_bounds__(block_threads)
    dz_kernel(std::int64_t used_rows, int columns, const float* __restrict__ slope, float* __restrict__ dz,
              T* __restrict__ dz_narrow) {
  const std::int64_t row = (static_cast<std::int64_t>(blockIdx.y) * gridDim.x + blockIdx.x) * columns;
  for (int c = static_cast<int>(threadIdx.x); c < columns; c += block_threads) {
    const float value = blockIdx.x < used_rows ? dz[row + c] * slope[row + c] : 0.0f;
    dz[row + c] = value;
    dz_narrow[row + c] = narrow<T>(value);
  }
}

// gradient [G, copies, columns] += the sum over the chunk's rows of panel [G, chunk, columns]. A thread block: 32
// columns of one head; each warp adds every eighth row, then the warps' sums are added in order.
__global__ void __launch_bounds__(block_threads)
    add_column_sums_kernel(const SummaryChunk chunk, int columns, int copies, const float* __restrict__ panel,
                           float* __restrict__ gradient) {
  __shared__ float sums[warps][warp_threads];
  const int warp = static_cast<int>(threadIdx.x) / warp_threads, lane = static_cast<int>(threadIdx.x) % warp_threads;
  const int column = static_cast<int>(blockIdx.x) * warp_threads + lane;
  const std::int64_t head = blockIdx.y;
  float sum = 0;
  if (column < columns) {
    const float* const first = panel + head * chunk.rows * columns + column;
    const int rows = static_cast<int>(chunk.count);
#pragma unroll 8  // so many loads are under way
    for (int row = warp; row < rows; row += warps) sum += first[static_cast<std::int64_t>(row) * columns];
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (column >= columns) return;
  float total = 0;
#pragma unroll
  for (int w = 0; w < warps; ++w) total += sums[w][lane];
  for (int copy = warp; copy < copies; copy += warps) gradient[(head * copies + copy) * columns + column] += total;
}

// dinput += dx' for tokens [first, first + tokens) of the chunk's summaries. Summaries start a stride apart at least,
// so with `tokens` a stride no two write one row; the caller takes the parts of a summary one after another. A thread
// block: one summary of one head.
__global__ void __launch_bounds__(block_threads)
    add_inputs_kernel(const SummaryChunk chunk, int heads, int first, int tokens, int units, int summary_stride,
                      int token_stride, const float4* __restrict__ dx, float4* __restrict__ dinput) {
  const std::int64_t head = blockIdx.y;
  const std::int64_t source_row = chunk.locations[blockIdx.x].source + first;
  const float4* const source = dx + (head * chunk.rows + blockIdx.x) * summary_stride + first * token_stride;
  for (int i = static_cast<int>(threadIdx.x); i < tokens * units; i += block_threads) {
    const int token = i / units, unit = i % units;
    const float4 x = source[token * token_stride + unit];
    float4& sum = dinput[((source_row + token) * heads + head) * units + unit];
    sum = make_float4(sum.x + x.x, sum.y + x.y, sum.z + x.z, sum.w + x.w);
  }
}

template <class T>
class Backward {
 public:
  Backward(const CompressBackward& arguments, Handles& handles, cudaStream_t stream)
      : a_(arguments),
        sizes_(*a_.config, a_.dtype, a_.dim, a_.hidden),
        products_(handles.products),
        stream_(stream),
        summaries_(summaries_of(a_.runs)),
        arena_(a_.scratch),
        buffers_(arena_, sizes_, summaries_) {}

  void run() {
    if (summaries_ == 0) return;
    locate_summaries(a_.runs, a_.config->compress_stride, summaries_, buffers_.locations, stream_);
    for_each_chunk(buffers_.locations, summaries_, max_chunk(sizes_, products_), [&](const SummaryChunk& chunk) {
      gather_dsummaries(chunk);
      switch (sizes_.compressor) {
        case Compressor::mean: add_mean(chunk); break;
        case Compressor::linear:
          gather_inputs(chunk, sizes_, a_.input, a_.parameters.pos, buffers_.inputs, stream_);
          add_first_layer(chunk, buffers_.dy_narrow, a_.parameters.weight, a_.dparameters.weight);
          break;
        case Compressor::mlp:
          gather_inputs(chunk, sizes_, a_.input, a_.parameters.pos, buffers_.inputs, stream_);
          add_second_layer(chunk);
          add_first_layer(chunk, buffers_.dz_narrow, a_.parameters.w1, a_.dparameters.w1);
          break;
      }
    });
  }

 private:
  int heads() const { return static_cast<int>(sizes_.heads); }
  int tokens() const { return static_cast<int>(a_.config->compress_block); }
  dim3 blocks_of(const SummaryChunk& chunk) const {
    return {static_cast<unsigned>(chunk.rows), static_cast<unsigned>(sizes_.heads)};
  }

  void gather_dsummaries(const SummaryChunk& chunk) {
    const float scale = sizes_.compressor == Compressor::mean ? 1.0f / static_cast<float>(tokens()) : 1.0f;
    gather_dsummaries_kernel<T><<<blocks_of(chunk), block_threads, 0, stream_>>>(
        chunk, heads(), static_cast<int>(a_.dim), scale, static_cast<const float*>(a_.dsummaries), buffers_.dy,
        static_cast<T*>(buffers_.dy_narrow));
    check_launch("gather_dsummaries");
  }

  // Every token of a summary gets dy / l.
  void add_mean(const SummaryChunk& chunk) {
    add_inputs(chunk, buffers_.dy, a_.dim, 0);
    add_column_sums(chunk, buffers_.dy, a_.dim, a_.config->compress_block, a_.dparameters.pos);
  }

  // From dy to dz, the gradient at the first layer's output, and to the parameters on the way.
  void add_second_layer(const SummaryChunk& chunk) {
    products_.run(sizes_.first_layer(chunk.rows), buffers_.inputs, a_.parameters.w1, buffers_.z, stream_);
    hidden_kernel<T, true><<<blocks_of(chunk), hidden_threads, 0, stream_>>>(
        a_.config->activation, static_cast<int>(sizes_.columns), buffers_.z, static_cast<const T*>(a_.parameters.b1),
        static_cast<T*>(buffers_.hidden));
    check_launch("hidden");
    if (a_.dparameters.w2)
      products_.run(sizes_.second_weight(chunk.rows), buffers_.hidden, buffers_.dy_narrow, a_.dparameters.w2, stream_);
    add_column_sums(chunk, buffers_.dy, a_.dim, 1, a_.dparameters.b2);
    products_.run(sizes_.hidden(chunk.rows), buffers_.dy_narrow, a_.parameters.w2, buffers_.dz, stream_);
    dz_kernel<T><<<blocks_of(chunk), block_threads, 0, stream_>>>(
        chunk.count, static_cast<int>(sizes_.columns), buffers_.z, buffers_.dz, static_cast<T*>(buffers_.dz_narrow));
    check_launch("dz");
    add_column_sums(chunk, buffers_.dz, sizes_.columns, 1, a_.dparameters.b1);
  }

  // From dz, where z = x' weight, to the weight, the inputs and pos.
  void add_first_layer(const SummaryChunk& chunk, const void* dz, const void* weight, void* dweight) {
    if (dweight) products_.run(sizes_.first_weight(chunk.rows), buffers_.inputs, dz, dweight, stream_);
    if (!a_.dinput && !a_.dparameters.pos) return;
    products_.run(sizes_.inputs(chunk.rows), dz, weight, buffers_.dinputs, stream_);
    add_inputs(chunk, buffers_.dinputs, sizes_.depth, a_.dim);
    add_column_sums(chunk, buffers_.dinputs, sizes_.depth, 1, a_.dparameters.pos);
  }

  void add_column_sums(const SummaryChunk& chunk, const float* panel, std::int64_t columns, std::int64_t copies,
                       void* gradient) {
    if (!gradient) return;
    const dim3 blocks(static_cast<unsigned>((columns + warp_threads - 1) / warp_threads),
                      static_cast<unsigned>(sizes_.heads));
    add_column_sums_kernel<<<blocks, block_threads, 0, stream_>>>(
        chunk, static_cast<int>(columns), static_cast<int>(copies), panel, static_cast<float*>(gradient));
    check_launch("add_column_sums");
  }

  // The newest tokens of every summary first, then those that the next summary covers too, and so on: a fixed order.
  void add_inputs(const SummaryChunk& chunk, const float* dx, std::int64_t summary_stride, std::int64_t token_stride) {
    if (!a_.dinput) return;
    constexpr std::int64_t unit = 4;  // floats
    const dim3 blocks(static_cast<unsigned>(chunk.count), static_cast<unsigned>(sizes_.heads));
    const auto stride = static_cast<int>(a_.config->compress_stride);
    for (int first = 0; first < tokens(); first += stride) {
      add_inputs_kernel<<<blocks, block_threads, 0, stream_>>>(
          chunk, heads(), first, stride, static_cast<int>(a_.dim / unit), static_cast<int>(summary_stride / unit),
          static_cast<int>(token_stride / unit), reinterpret_cast<const float4*>(dx), static_cast<float4*>(a_.dinput));
      check_launch("add_inputs");
    }
  }

  const CompressBackward& a_;
  CompressSizes sizes_;
  MatrixProducts& products_;
  cudaStream_t stream_;
  std::int64_t summaries_;
  Arena arena_;
  CompressBackwardBuffers buffers_;
};

}  // namespace

template <>
void run_op(const CompressBackward& a, Handles& handles, cudaStream_t stream) {
  visit_type(a.dtype, [&]<class T>(std::type_identity<T>) { Backward<T>(a, handles, stream).run(); });
}

}  // namespace cpnsa::cuda::sm80
