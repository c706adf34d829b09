#include "kernels/cuda/sm80/compression/compress_layout.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <vector>

#include "cpnsa/error.hpp"
#include "kernels/cuda/sm80/run_op.hpp"

namespace cpnsa::cuda::sm80 {
namespace {

using Stored = MatrixProduct::Stored;

// The compressors of keys and of values.
std::array<CompressSizes, 2> both_of(const Config& config, DType dtype) {
  return {CompressSizes(config, dtype, config.head_dim_qk, config.compress_hidden_k),
          CompressSizes(config, dtype, config.head_dim_v, config.compress_hidden_v)};
}

// Rows come out the same in chunks of both sizes.
MatrixProduct alike(MatrixProduct product) {
  product.alike_rows = small_chunk + large_chunk - product.rows;
  return product;
}

std::vector<MatrixProduct> products_of(const CompressSizes& sizes, std::int64_t chunk) {
  if (sizes.compressor == Compressor::mean) return {};
  std::vector<MatrixProduct> all{sizes.first_layer(chunk), sizes.first_weight(chunk), sizes.inputs(chunk)};
  if (sizes.compressor == Compressor::mlp)
    all.insert(all.end(), {sizes.second_layer(chunk), sizes.second_weight(chunk), sizes.hidden(chunk)});
  return all;
}

}  // namespace

CompressSizes::CompressSizes(const Config& config, DType type, std::int64_t d, std::int64_t hidden_width)
    : dtype(type),
      compressor(config.compressor),
      heads(config.num_kv_heads),
      dim(d),
      depth(config.compress_block * d),
      columns(compressor == Compressor::mlp      ? hidden_width
              : compressor == Compressor::linear ? d
                                                 : 0) {}

MatrixProduct CompressSizes::first_layer(std::int64_t chunk) const {
  return alike({dtype, heads, chunk, columns, depth});
}
MatrixProduct CompressSizes::second_layer(std::int64_t chunk) const {
  return alike({dtype, heads, chunk, dim, columns});
}
MatrixProduct CompressSizes::second_weight(std::int64_t chunk) const {
  return {dtype, heads, columns, dim, chunk, Stored::a_transposed, true};
}
MatrixProduct CompressSizes::hidden(std::int64_t chunk) const {
  return {dtype, heads, chunk, columns, dim, Stored::b_transposed};
}
MatrixProduct CompressSizes::first_weight(std::int64_t chunk) const {
  return {dtype, heads, depth, columns, chunk, Stored::a_transposed, true};
}
MatrixProduct CompressSizes::inputs(std::int64_t chunk) const {
  return {dtype, heads, chunk, depth, columns, Stored::b_transposed};
}

CompressBuffers::CompressBuffers(Arena& arena, const CompressSizes& sizes, std::int64_t summaries) {
  const std::int64_t rows = sizes.heads * chunk_rows(summaries);
  const auto layer_rows = [&](std::int64_t width) {
    return arena.take(static_cast<std::size_t>(rows * width) * size_of(sizes.dtype));
  };
  const bool products = sizes.compressor != Compressor::mean, mlp = sizes.compressor == Compressor::mlp;
  locations = arena.take<SummaryLocation>(summaries);
  inputs = products ? layer_rows(sizes.depth) : nullptr;
  z = products ? arena.take<float>(rows * sizes.columns) : nullptr;
  hidden = mlp ? layer_rows(sizes.columns) : nullptr;
  y = mlp ? arena.take<float>(rows * sizes.dim) : nullptr;
}

CompressBackwardBuffers::CompressBackwardBuffers(Arena& arena, const CompressSizes& sizes, std::int64_t summaries) {
  const std::int64_t rows = sizes.heads * chunk_rows(summaries);
  const auto layer_rows = [&](std::int64_t width) {
    return arena.take(static_cast<std::size_t>(rows * width) * size_of(sizes.dtype));
  };
  const bool products = sizes.compressor != Compressor::mean, mlp = sizes.compressor == Compressor::mlp;
  locations = arena.take<SummaryLocation>(summaries);
  dy = arena.take<float>(rows * sizes.dim);
  dy_narrow = products ? layer_rows(sizes.dim) : nullptr;
  inputs = products ? layer_rows(sizes.depth) : nullptr;
  dinputs = products ? arena.take<float>(rows * sizes.depth) : nullptr;
  z = mlp ? arena.take<float>(rows * sizes.columns) : nullptr;
  hidden = mlp ? layer_rows(sizes.columns) : nullptr;
  dz = mlp ? arena.take<float>(rows * sizes.columns) : nullptr;
  dz_narrow = mlp ? layer_rows(sizes.columns) : nullptr;
}

std::int64_t summaries_of(const ListView<SummaryRun>& runs) {
  std::int64_t summaries = 0;
  for (std::int64_t i = 0; i < runs.count; ++i) {
    if (runs.host[i].count < 1)
      throw ArgumentError(fmt::format("runs[{}].count: found {}, expected at least 1", i, runs.host[i].count));
    summaries += runs.host[i].count;
  }
  return summaries;
}

std::int64_t max_chunk(const CompressSizes& sizes, MatrixProducts& products) {
  const auto all = products_of(sizes, large_chunk);
  return std::ranges::all_of(all, [&](const auto& product) { return products.offers(product); }) ? large_chunk
                                                                                                 : small_chunk;
}

void prepare_compress(const Config& config, DType dtype, MatrixProducts& products) {
  for (const CompressSizes& sizes : both_of(config, dtype)) {
    for (const MatrixProduct& product : products_of(sizes, small_chunk)) products.prepare(product);
    max_chunk(sizes, products);
  }
}

std::size_t compress_scratch_bytes(const ProblemSize& size) {
  std::size_t bytes = 0;
  for (const CompressSizes& sizes : both_of(*size.config, size.dtype)) {
    Arena forward, backward;
    CompressBuffers(forward, sizes, size.own_summaries);
    if (size.backward) CompressBackwardBuffers(backward, sizes, size.own_summaries);
    bytes = std::max({bytes, forward.used(), backward.used()});
  }
  return bytes;
}

}  // namespace cpnsa::cuda::sm80
