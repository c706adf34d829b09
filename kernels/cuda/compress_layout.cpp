#include "kernels/cuda/compress_layout.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "cpnsa/error.hpp"
#include "kernels/cuda/scratch.hpp"

namespace cpnsa::cuda {
namespace {

using Stored = MatrixProduct::Stored;

// The compressors of keys and of values.
std::array<CompressSizes, 2> both_of(const Config& config, DType dtype) {
  return {CompressSizes(config, dtype, config.head_dim_qk, config.compress_hidden_k),
          CompressSizes(config, dtype, config.head_dim_v, config.compress_hidden_v)};
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

MatrixProduct CompressSizes::first_layer() const {
  return {dtype, heads, summaries_per_chunk, columns, depth};
}
MatrixProduct CompressSizes::second_layer() const {
  return {dtype, heads, summaries_per_chunk, dim, columns};
}
MatrixProduct CompressSizes::second_weight() const {
  return {dtype, heads, columns, dim, summaries_per_chunk, Stored::a_transposed, true};
}
MatrixProduct CompressSizes::hidden() const {
  return {dtype, heads, summaries_per_chunk, columns, dim, Stored::b_transposed};
}
MatrixProduct CompressSizes::first_weight() const {
  return {dtype, heads, depth, columns, summaries_per_chunk, Stored::a_transposed, true};
}
MatrixProduct CompressSizes::inputs() const {
  return {dtype, heads, summaries_per_chunk, depth, columns, Stored::b_transposed};
}

CompressBuffers::CompressBuffers(Arena& arena, const CompressSizes& sizes, std::int64_t summaries) {
  const std::int64_t rows = sizes.heads * summaries_per_chunk;
  const auto layer_rows = [&](std::int64_t width) {
    return arena.take(static_cast<std::size_t>(rows * width) * size_of(sizes.dtype));
  };
  const bool products = sizes.compressor != Compressor::mean, mlp = sizes.compressor == Compressor::mlp;
  places = arena.take<SummaryPlace>(summaries);
  inputs = products ? layer_rows(sizes.depth) : nullptr;
  z = products ? arena.take<float>(rows * sizes.columns) : nullptr;
  hidden = mlp ? layer_rows(sizes.columns) : nullptr;
  y = mlp ? arena.take<float>(rows * sizes.dim) : nullptr;
}

CompressBackwardBuffers::CompressBackwardBuffers(Arena& arena, const CompressSizes& sizes, std::int64_t summaries) {
  const std::int64_t rows = sizes.heads * summaries_per_chunk;
  const auto layer_rows = [&](std::int64_t width) {
    return arena.take(static_cast<std::size_t>(rows * width) * size_of(sizes.dtype));
  };
  const bool products = sizes.compressor != Compressor::mean, mlp = sizes.compressor == Compressor::mlp;
  places = arena.take<SummaryPlace>(summaries);
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

void prepare_compress(const Config& config, DType dtype, MatrixProducts& products) {
  if (config.compressor == Compressor::mean) return;
  for (const CompressSizes& sizes : both_of(config, dtype)) {
    for (const MatrixProduct& product : {sizes.first_layer(), sizes.first_weight(), sizes.inputs()})
      products.prepare(product);
    if (config.compressor != Compressor::mlp) continue;
    for (const MatrixProduct& product : {sizes.second_layer(), sizes.second_weight(), sizes.hidden()})
      products.prepare(product);
  }
}

std::size_t compress_scratch_bytes(const ProblemSize& size) {
  std::size_t most = 0;
  for (const CompressSizes& sizes : both_of(*size.config, size.dtype)) {
    Arena forward, backward;
    CompressBuffers(forward, sizes, size.own_summaries);
    if (size.backward) CompressBackwardBuffers(backward, sizes, size.own_summaries);
    most = std::max({most, forward.used(), backward.used()});
  }
  return most;
}

}  // namespace cpnsa::cuda
