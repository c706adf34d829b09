#pragma once

// What the linear and the mlp compressor share, forward and backward: a tile of summaries against a weight that is
// streamed once a tile, widened a chunk of tokens at a time. A summary's value is the sum over its tokens and channels
// ascending, whatever tile it is in.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpnsa/stages.hpp"
#include "kernels/cpu/panels.hpp"

namespace cpnsa::cpu {

/// Where a summary reads and writes: first row of the input, row of the summaries tensor.
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

/// Tokens of a summary, [begin, end): as many as keep a chunk of the weight in cache.
inline std::int64_t tokens_per_chunk(std::int64_t dim, std::int64_t block) {
  return std::clamp<std::int64_t>(256 / dim, 1, block);
}

/// Calls function(ColumnRange of tokens) for the chunks of a summary's tokens.
template <class Function>
void for_each_token_chunk(std::int64_t dim, std::int64_t block, Function&& function) {
  const std::int64_t step = tokens_per_chunk(dim, block);
  for (std::int64_t begin = 0; begin < block; begin += step)
    function(ColumnRange{begin, std::min(begin + step, block)});
}

/// A weight matrix of one head, [depth, columns] in the layer's type, rows widened into a panel of padded() columns.
template <class T>
void widen_matrix(const T* weight, std::int64_t columns, std::int64_t depth, Arithmetic<T>* panel) {
  const std::int64_t stride = padded<Arithmetic<T>>(columns);
  for (std::int64_t k = 0; k < depth; ++k) widen_row(weight + k * columns, columns, panel + k * stride);
}

/// The same, transposed: [columns, padded(depth)].
template <class T>
void widen_transposed(const T* weight, std::int64_t columns, std::int64_t depth, Arithmetic<T>* panel) {
  const std::int64_t stride = padded<Arithmetic<T>>(depth);
  for (std::int64_t k = 0; k < depth; ++k)
    for (std::int64_t j = 0; j < columns; ++j) panel[j * stride + k] = widen(weight[k * columns + j]);
}

/// x' = x + pos of a tile's summaries, one head, some tokens of each: rows [summaries, tokens dim].
template <class T>
class SummaryInputs {
 public:
  using A = Arithmetic<T>;

  SummaryInputs(std::int64_t dim, std::int64_t block)
      : dim_(dim),
        stride_(padded<A>(tokens_per_chunk(dim, block) * dim)),
        pos_(tokens_per_chunk(dim, block) * dim),
        data_(summaries_per_tile * stride_) {}

  /// input: one head's rows of [input rows, G, dim]; pos: the head's [l, dim] or null.
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

  /// As the left-hand side of x' W, and of x'^T dy.
  LeftSide<A> rows() const { return {data_.data(), stride_, 1}; }
  LeftSide<A> transposed() const { return {data_.data(), 1, stride_}; }

 private:
  std::int64_t dim_;
  std::int64_t stride_;
  Buffer<A> pos_;
  Buffer<A> data_;
};

/// What one head's first layer (`linear`: its only one) is: y = x' weight, [l dim, columns].
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

  /// y [summaries, padded(columns)], overwritten.
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
