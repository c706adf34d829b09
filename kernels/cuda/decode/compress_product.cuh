#pragma once

// The linear and the mlp compressor on completed summaries, product_rows of them at a time, so that the weights are
// read once. A work item multiplies product_inputs channels of the input by product_columns columns of the first
// layer's weights; the last thread block that arrives adds the products in ascending order, and computes the rest.

#include <cstdint>

#include "kernels/cuda/common/activation.cuh"
#include "kernels/cuda/common/packs.cuh"
#include "kernels/cuda/common/swizzled_tile.cuh"
#include "kernels/cuda/decode/completed.cuh"
#include "kernels/cuda/decode/launch.cuh"
#include "kernels/cuda/decode/scratch.hpp"

namespace cpnsa::cuda::decode {

inline constexpr int product_threads = 256;

template <class T>
struct ProductShared {
  static constexpr int weight_rows = 32;  ///< of a stage
  static constexpr int stages = 4;
  using Inputs = SwizzledTile<product_rows, product_inputs>;
  using Weights = SwizzledTile<weight_rows, product_columns>;
  static constexpr int bytes = Inputs::bytes + stages * Weights::bytes;
};

/// The parameters of one side.
template <class T>
struct ProductSide {
  FirstLayer first;
  int dim;
  const T* pos;  ///< [G, l, d]; null: none
  const T* w1;   ///< [G, l d, outputs], of the linear compressor the only weights
  const T* b1;
  const T* w2;  ///< [G, outputs, d]; null: the linear compressor
  const T* b2;
  std::int64_t product_offset;  ///< of the side's products of a tile
};

template <class T>
struct ProductProblem {
  CompletedSummaries<T> completed;
  Activation activation;
  ProductSide<T> sides[2];
  float* products;  ///< [tiles, products_per_tile]; null: a work item does all of a tile
  std::int64_t products_per_tile;

  ProductProblem(const DecodeCompress& a, const CompletedSummaries<T>& summaries)
      : completed(summaries),
        activation(a.config->activation),
        sides{side(*a.config, true, a.k_parameters), side(*a.config, false, a.v_parameters)},
        products(StepScratch(a, a.summaries.ranks == 1).products) {
    const auto size = [&](const ProductSide<T>& s) {
      return a.config->num_kv_heads * s.first.splits * s.first.columns * product_rows * product_columns;
    };
    sides[1].product_offset = size(sides[0]);
    products_per_tile = size(sides[0]) + size(sides[1]);
  }

  /// Work items of a tile of product_rows summaries.
  __host__ __device__ int items_per_tile() const {
    return completed.num_kv_heads * (items_per_head(0) + items_per_head(1));
  }
  __host__ __device__ int items_per_head(int side) const {
    return products ? sides[side].first.splits * sides[side].first.columns : 1;
  }

 private:
  static ProductSide<T> side(const Config& config, bool keys, const CompressorPointers& p) {
    const bool mlp = config.compressor == Compressor::mlp;
    const auto typed = [](const void* pointer) { return static_cast<const T*>(pointer); };
    return {FirstLayer(config, keys),
            static_cast<int>(keys ? config.head_dim_qk : config.head_dim_v),
            typed(p.pos),
            typed(mlp ? p.w1 : p.weight),
            typed(p.b1),
            mlp ? typed(p.w2) : nullptr,
            typed(p.b2),
            0};
  }
};

/// A product of 16 rows and product_columns columns: a warp has 32 of them, a thread four in each of rows lane / 4 and
/// lane / 4 + 8.
struct ProductSums {
  float at[4][4] = {};
};

template <class T>
class CompressProduct {
 public:
  using Inputs = typename ProductShared<T>::Inputs;
  using Weights = typename ProductShared<T>::Weights;

  __device__ CompressProduct(const ProductProblem<T>& problem, unsigned char* shared)
      : a_(problem), shared_(shared), inputs_(ptx::shared_address(shared)), ring_(inputs_ + Inputs::bytes) {}

  /// Item `item` of a tile of summaries.
  __device__ void run(int tile, int item) {
    const int keys_items = a_.completed.num_kv_heads * a_.items_per_head(0);
    side_ = item < keys_items ? Side::keys : Side::values;
    if (side_ == Side::values) item -= keys_items;
    const ProductSide<T>& side = own();
    const int per_head = a_.items_per_head(static_cast<int>(side_));
    group_ = item / per_head;
    tile_ = tile;
    __syncthreads();  // the item before has been written
    if (threadIdx.x < product_rows)
      places()[threadIdx.x] = a_.completed.place(tile * product_rows + static_cast<int>(threadIdx.x), side_);
    __syncthreads();
    if (!a_.products) return complete();
    const int split = item % per_head % side.first.splits, column = item % per_head / side.first.splits;
    ProductSums sums;
    multiply_inputs(split, column, sums);
    store(split, column, sums);
    unsigned* const counter = a_.completed.schedule.compress_counters +
                              (tile * 2 + static_cast<int>(side_)) * a_.completed.num_kv_heads + group_;
    if (arrive_last(counter, per_head)) complete();
  }

 private:
  __device__ static CompletedPlace* places() {
    __shared__ CompletedPlace all[product_rows];
    return all;
  }
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }
  __device__ static int warp() { return static_cast<int>(threadIdx.x) / 32; }
  /// The first of two neighbouring columns of a product.
  __device__ static int column_of(int n) { return warp() * 32 + n * 8 + lane() % 4 * 2; }
  __device__ static bool has_row(int half) { return places()[lane() / 4 + 8 * half].at.id >= 0; }
  __device__ const ProductSide<T>& own() const { return a_.sides[static_cast<int>(side_)]; }

  /// Adds the product of channels [split product_inputs, ...) of the inputs and a tile of columns of the first layer.
  __device__ void multiply_inputs(int split, int column, ProductSums& sums) {
    const ProductSide<T>& side = own();
    const int first = split * product_inputs, channels = min(product_inputs, side.first.inputs - first);
    __syncthreads();  // the inputs before have been read
    for (int i = static_cast<int>(threadIdx.x); i < product_rows * Inputs::chunks; i += product_threads) {
      const int row = i / Inputs::chunks, chunk = i % Inputs::chunks;
      LayerPack<T> x{};
      const CompletedPlace place = places()[row];
      if (place.at.id >= 0 && chunk * pack_items < channels) {
        const int token = (first + chunk * pack_items) / side.dim, channel = (first + chunk * pack_items) % side.dim;
        const T* const source = a_.completed.input_row(place, side_, token);
        if (source) x = load_pack(source + group_ * side.dim + channel, 0);
        if (side.pos) {
          const LayerPack<T> p = load_pack(
              side.pos + (static_cast<std::int64_t>(group_) * a_.completed.length + token) * side.dim + channel, 0);
#pragma unroll
          for (int c = 0; c < pack_items; ++c)
            x.item[c] = narrow<T>((source ? widen(x.item[c]) : 0.f) + widen(p.item[c]));
        }
      }
      *reinterpret_cast<LayerPack<T>*>(shared_ + Inputs::offset(row, chunk)) = x;
    }
    multiply(side.w1 + (static_cast<std::int64_t>(group_) * side.first.inputs + first) * side.first.outputs,
             side.first.outputs, channels, column, sums);
  }

  /// Adds inputs_ x weights [rows, columns] (rows at most product_inputs), of the columns from `column`
  /// product_columns on.
  __device__ void multiply(const T* weights, int columns, int rows, int column, ProductSums& sums) {
    constexpr int stages = ProductShared<T>::stages, weight_rows = ProductShared<T>::weight_rows;
    const int first = column * product_columns, width = min(product_columns, columns - first);
    const int tiles = (rows + weight_rows - 1) / weight_rows;
    const auto load = [&](int tile) {
      if (tile < tiles)
        load_rows<Weights, product_threads>(
            ring_ + tile % stages * Weights::bytes, width, weights, [&](int r) -> const T* {
              const int row = tile * weight_rows + r;
              return row < rows ? weights + static_cast<std::int64_t>(row) * columns + first : nullptr;
            });
      ptx::cp_async_commit();
    };
    __syncthreads();  // the inputs are there, and the ring is free
    for (int tile = 0; tile < stages - 1; ++tile) load(tile);
    for (int tile = 0; tile < tiles; ++tile) {
      ptx::cp_async_wait<stages - 2>();
      __syncthreads();
      load(tile + stages - 1);
      const std::uint32_t stage = ring_ + tile % stages * Weights::bytes;
#pragma unroll
      for (int step = 0; step < weight_rows / 16; ++step) {
        std::uint32_t x[4];
        ptx::ldmatrix_x4(x, inputs_ + Inputs::offset(lane() % 16, (tile * weight_rows + step * 16) / 8 + lane() / 16));
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          std::uint32_t w[4];
          ptx::ldmatrix_x4_transposed(
              w, stage + Weights::offset(step * 16 + lane() % 16, warp() * 4 + 2 * n + lane() / 16));
          ptx::mma_m16n8k16<T>(sums.at[2 * n], x, w[0], w[1]);
          ptx::mma_m16n8k16<T>(sums.at[2 * n + 1], x, w[2], w[3]);
        }
      }
    }
    ptx::cp_async_wait<0>();
  }

  /// Where the thread's share of a product is stored.
  __device__ float4* stored(int split, int column) const {
    const ProductSide<T>& side = own();
    const std::int64_t product =
        (static_cast<std::int64_t>(group_) * side.first.splits + split) * side.first.columns + column;
    float* const at =
        a_.products + tile_ * a_.products_per_tile + side.product_offset + product * (product_rows * product_columns);
    return reinterpret_cast<float4*>(at) + threadIdx.x * 4;
  }
  __device__ void store(int split, int column, const ProductSums& sums) const {
    float4* const at = stored(split, column);
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (has_row(half)) {
        at[2 * half] = {sums.at[0][2 * half], sums.at[0][2 * half + 1], sums.at[1][2 * half], sums.at[1][2 * half + 1]};
        at[2 * half + 1] = {sums.at[2][2 * half], sums.at[2][2 * half + 1], sums.at[3][2 * half],
                            sums.at[3][2 * half + 1]};
      }
  }

  __device__ static void add(ProductSums& total, const ProductSums& sums) {
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) total.at[n][i] = __fadd_rn(total.at[n][i], sums.at[n][i]);
  }

  /// The sum of a tile of columns of the first layer over all inputs, split after split.
  __device__ ProductSums first_layer(int column) {
    ProductSums total;
    const int splits = own().first.splits;
    if (!a_.products) {
      for (int split = 0; split < splits; ++split) {
        ProductSums sums;
        multiply_inputs(split, column, sums);
        add(total, sums);
      }
      return total;
    }
    constexpr int at_a_time = 4;  // a read takes longer than the sum
    for (int first = 0; first < splits; first += at_a_time) {
      ProductSums sums[at_a_time];
#pragma unroll
      for (int i = 0; i < at_a_time; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          if (first + i >= splits || !has_row(half)) continue;
          const float4* const at = stored(first + i, column);
          const float4 low = __ldcg(at + 2 * half), high = __ldcg(at + 2 * half + 1);
          sums[i].at[0][2 * half] = low.x, sums[i].at[0][2 * half + 1] = low.y;
          sums[i].at[1][2 * half] = low.z, sums[i].at[1][2 * half + 1] = low.w;
          sums[i].at[2][2 * half] = high.x, sums[i].at[2][2 * half + 1] = high.y;
          sums[i].at[3][2 * half] = high.z, sums[i].at[3][2 * half + 1] = high.w;
        }
#pragma unroll
      for (int i = 0; i < at_a_time; ++i)
        if (first + i < splits) add(total, sums[i]);
    }
    return total;
  }

  /// The rest: the first layer's sums, for the mlp the activation and the second layer, and the summaries.
  __device__ void complete() {
    const ProductSide<T>& side = own();
    if (!side.w2) return write(first_layer(0), nullptr);
    ProductSums sums;
    for (int column = 0; column < side.first.columns; ++column) {
      ProductSums hidden = first_layer(column);
      __syncthreads();  // the inputs before have been read
#pragma unroll
      for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int in_tile = column_of(n) + i % 2, index = column * product_columns + in_tile;
          float h = 0.f;
          if (index < side.first.outputs) {
            const float bias = side.b1 ? widen(side.b1[group_ * side.first.outputs + index]) : 0.f;
            h = activate(a_.activation, hidden.at[n][i] + bias).value;
          }
          const int row = lane() / 4 + i / 2 * 8;
          *reinterpret_cast<T*>(shared_ + Inputs::offset(row, in_tile / 8) + in_tile % 8 * element_bytes) =
              narrow<T>(h);
        }
      const int rows = min(product_inputs, side.first.outputs - column * product_columns);
      multiply(side.w2 + (static_cast<std::int64_t>(group_) * side.first.outputs + column * product_columns) * side.dim,
               side.dim, rows, 0, sums);
    }
    write(sums, side.b2);
  }

  __device__ void write(const ProductSums& sums, const T* bias) const {
    const ProductSide<T>& side = own();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const CompletedPlace place = places()[lane() / 4 + 8 * half];
      if (place.at.id < 0) continue;
      T* const out = a_.completed.summary_row(place, side_) + group_ * side.dim;
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const int column = column_of(n);
        if (column >= side.dim) continue;
        float y[2];
#pragma unroll
        for (int i = 0; i < 2; ++i)
          y[i] = sums.at[n][2 * half + i] + (bias ? widen(bias[group_ * side.dim + column + i]) : 0.f);
        *reinterpret_cast<std::uint32_t*>(out + column) = narrow2<T>(y[0], y[1]);
      }
    }
  }

  static_assert(product_columns == product_inputs);  // a tile of hidden columns is the second layer's input

  const ProductProblem<T>& a_;
  unsigned char* shared_;
  std::uint32_t inputs_;
  std::uint32_t ring_;
  Side side_ = Side::keys;
  int group_ = 0;
  int tile_ = 0;
};

template <class T>
__global__ void __launch_bounds__(product_threads)
    compress_product_kernel(const __grid_constant__ ProductProblem<T> a) {
  extern __shared__ __align__(1024) unsigned char shared[];
  ptx::wait_for_previous_grid();
  ptx::allow_next_grid();
  const int tiles = (a.completed.places() + product_rows - 1) / product_rows, items = tiles * a.items_per_tile();
  CompressProduct<T> product(a, shared);
  // Neighbours multiply different summaries by the same weights.
  for (int item = static_cast<int>(blockIdx.x); item < items; item += static_cast<int>(gridDim.x))
    product.run(item % tiles, item / tiles);
}

}  // namespace cpnsa::cuda::decode
