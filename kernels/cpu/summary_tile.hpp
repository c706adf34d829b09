#pragma once

// Pieces of the compressors, forward and backward: a tile of summaries is multiplied by a weight that is read once per
// tile and widened one chunk of tokens at a time. A summary's value is the sum over its tokens and channels in
// ascending order, so it does not depend on the tile.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpnsa/ops.hpp"
#include "kernels/cpu/panels.hpp"

namespace cpnsa::cpu {

/// The rows of one summary: `source` is its first row of the input, `summary` its row of the summaries tensor.
struct SummaryRows {
  std::int64_t source;
  std::int64_t summary;
};

inline constexpr std::int64_t summaries_per_tile = 128;

/// Calls function(tile) for all summaries of the runs, summaries_per_tile at a time, across the ends of runs.
template <class Function>
void for_each_summary_tile(const ListView<SummaryRun>& runs, std::int64_t stride, Function&& function) {
  std::vector<SummaryRows> tile;
  for (std::int64_t i = 0; i < runs.count; ++i) {
    const SummaryRun& run = runs.host[i];
    for (std::int64_t k = 0; k < run.count; ++k) {
      tile.push_back({run.source_row + k * stride, run.summary + k});
      if (static_cast<std::int64_t>(tile.size()) < summaries_per_tile) continue;
      function(tile);
      tile.clear();
    }
  }
  if (!tile.empty()) function(tile);
}

/// Tokens per chunk: as many as let a chunk of the weight stay in the cache.
inline std::int64_t tokens_per_chunk(std::int64_t dim, std::int64_t block) {
  return std::clamp<std::int64_t>(256 / dim, 1, block);
}

/// Calls function(ColumnRange) with the tokens [begin, end) of each chunk of a summary's `block` tokens.
template <class Function>
void for_each_token_chunk(std::int64_t dim, std::int64_t block, Function&& function) {
  const std::int64_t step = tokens_per_chunk(dim, block);
  for (std::int64_t begin = 0; begin < block; begin += step)
    function(ColumnRange{begin, std::min(begin + step, block)});
}

/// One KV head's part of a tensor [G, elements...] of parameters or of their gradients; null stays null.
template <class T, class Pointer>
T* of_group(Pointer tensor, std::int64_t group, std::int64_t elements) {
  return tensor ? static_cast<T*>(tensor) + group * elements : nullptr;
}

/// panel [depth, padded(columns)] = weight [depth, columns], widened.
template <class T>
void widen_matrix(const T* weight, std::int64_t columns, std::int64_t depth, Arithmetic<T>* panel) {
  const std::int64_t stride = padded<Arithmetic<T>>(columns);
  for (std::int64_t k = 0; k < depth; ++k) widen_row(weight + k * columns, columns, panel + k * stride);
}

/// panel [columns, padded(depth)] = the transpose of weight [depth, columns], widened.
template <class T>
void widen_transposed(const T* weight, std::int64_t columns, std::int64_t depth, Arithmetic<T>* panel) {
  const std::int64_t stride = padded<Arithmetic<T>>(depth);
  for (std::int64_t k = 0; k < depth; ++k)
    for (std::int64_t j = 0; j < columns; ++j) panel[j * stride + k] = widen(weight[k * columns + j]);
}

/// x' = x + pos for one KV head and some tokens of each summary of a tile: rows [summaries, tokens dim].
template <class T>
class SummaryInputs {
 public:
  using A = Arithmetic<T>;

  SummaryInputs(std::int64_t dim, std::int64_t block)
      : dim_(dim),
        stride_(padded<A>(tokens_per_chunk(dim, block) * dim)),
        pos_(tokens_per_chunk(dim, block) * dim),
        data_(summaries_per_tile * stride_) {}

  /// Loads tokens `tokens` of each summary. `input` is one KV head's part of [input rows, G, dim]; `pos` is its [l,
  /// dim], or null.
  void load(Strided<const T> input, const T* pos, const std::vector<SummaryRows>& tile, ColumnRange tokens) {
    if (pos) widen_row(pos + tokens.begin * dim_, (tokens.end - tokens.begin) * dim_, pos_.data());
    for (std::size_t i = 0; i < tile.size(); ++i) {
      A* const row = data_.data() + static_cast<std::int64_t>(i) * stride_;
      for (std::int64_t token = tokens.begin; token < tokens.end; ++token) {
        A* const x = row + (token - tokens.begin) * dim_;
        widen_row(input.row(tile[i].source + token), dim_, x);
        const A* const p = pos_.data() + (token - tokens.begin) * dim_;
        for (std::int64_t c = 0; pos && c < dim_; ++c) x[c] += p[c];
      }
    }
  }

  /// The left-hand side of x' W.
  LeftSide<A> rows() const { return {data_.data(), stride_, 1}; }
  /// The left-hand side of x'^T dy.
  LeftSide<A> transposed() const { return {data_.data(), 1, stride_}; }

 private:
  std::int64_t dim_;
  std::int64_t stride_;
  Buffer<A> pos_;
  Buffer<A> data_;
};

/// The first layer of the mlp compressor, or the only one of the linear compressor, for one KV head: y = x' weight,
/// with weight [l dim, columns].
template <class T>
class SummaryProjection {
 public:
  using A = Arithmetic<T>;

  SummaryProjection(std::int64_t dim, std::int64_t block, std::int64_t columns)
      : dim_(dim),
        block_(block),
        columns_(columns),
        inputs_(dim, block),
        weights_(tokens_per_chunk(dim, block) * dim * padded<A>(columns)) {}

  /// y [summaries, padded(columns)] = x' weight for the summaries of the tile.
  void apply(Strided<const T> input, const T* pos, const T* weight, const std::vector<SummaryRows>& tile, A* y) {
    const std::int64_t stride = padded<A>(columns_);
    const auto summaries = static_cast<std::int64_t>(tile.size());
    std::fill_n(y, summaries * stride, A{0});
    for_each_token_chunk(dim_, block_, [&](ColumnRange tokens) {
      const std::int64_t depth = (tokens.end - tokens.begin) * dim_;
      inputs_.load(input, pos, tile, tokens);
      widen_matrix(weight + tokens.begin * dim_ * columns_, columns_, depth, weights_.data());
      multiply<Product::add, A>(inputs_.rows(), {weights_.data(), stride}, {y, stride}, summaries, columns_, depth);
    });
  }

 private:
  std::int64_t dim_;
  std::int64_t block_;
  std::int64_t columns_;
  SummaryInputs<T> inputs_;
  Buffer<A> weights_;
};

}  // namespace cpnsa::cpu
