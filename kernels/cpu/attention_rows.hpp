#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cpu/panels.hpp"
#include "kernels/cpu/query_tile.hpp"
#include "kernels/cpu/softmax_state.hpp"

namespace cpnsa::cpu {

/// The rows (query, head of the group) of a query tile in the forward of a branch: scaled queries, running softmax and
/// unnormalised output. The branches differ only in the tiles of keys that they pass to attend().
template <class T>
class AttentionRows {
 public:
  using A = Arithmetic<T>;
  static constexpr std::int64_t rows_per_tile = 256;

  explicit AttentionRows(const Config& config)
      : config_(config),
        heads_per_group_(config.heads_per_group()),
        d_qk_(config.head_dim_qk),
        d_v_(config.head_dim_v),
        out_stride_(padded<A>(d_v_)),
        q_(capacity() * d_qk_),
        out_(capacity() * out_stride_),
        scores_(kernel_rows * key_tile),
        states_(static_cast<std::size_t>(capacity())),
        rows_(static_cast<std::size_t>(capacity())) {}

  std::int64_t queries() const { return queries_per_tile(config_, rows_per_tile); }

  /// Starts a tile: loads its rows of q [rows, H, d_qk] and clears the output.
  void start(const QueryTile& tile, const T* q) {
    load_queries(config_, tile, q, q_.data(), d_qk_);
    std::fill_n(out_.data(), tile.count * heads_per_group_ * out_stride_, A{0});
    std::fill_n(states_.begin(), tile.count * heads_per_group_, SoftmaxState<A>{});
  }

  /// Adds a tile of keys and values to the output of the given queries, each of which is listed at most once.
  void attend(const ColumnPanel<A>& keys, const RowPanel<A>& values, std::span<const VisibleKeys> visible) {
    std::int64_t count = 0;
    for (const VisibleKeys& query : visible)
      for (std::int64_t head = 0; head < heads_per_group_; ++head)
        rows_[static_cast<std::size_t>(count++)] = {query.query * heads_per_group_ + head, query.columns};
    for (std::int64_t first = 0; first < count; first += kernel_rows) {
      const std::span<const Row> rows(rows_.data() + first,
                                      static_cast<std::size_t>(std::min(kernel_rows, count - first)));
      if (values.finite() || uniform(rows)) {
        attend_rows(keys, values, rows);
      } else {  // 0 times a value that is not finite is NaN: a row must not multiply values that it does not see
        for (std::size_t r = 0; r < rows.size(); ++r) attend_rows(keys, values, rows.subspan(r, 1));
      }
    }
  }

  /// Writes the tile's rows of out [rows, H, d_v], of type T or A, and log_sum_exp [rows, H]; null: not wanted.
  template <class Out>
  void finish(const QueryTile& tile, Out* out, A* log_sum_exp) {
    for (std::int64_t i = 0; i < tile.count; ++i)
      for (std::int64_t head = 0; head < heads_per_group_; ++head) {
        const std::int64_t row = i * heads_per_group_ + head;
        const SoftmaxState<A>& state = states_[static_cast<std::size_t>(row)];
        const A* source = out_.data() + row * out_stride_;
        const A sum = state.empty() ? A{1} : state.sum();
        if (out) {
          Out* const destination = heads_of_group(out, config_, tile.group, d_v_).row(tile.row(i)) + head * d_v_;
          for (std::int64_t c = 0; c < d_v_; ++c) destination[c] = narrow<Out>(source[c] / sum);
        }
        if (log_sum_exp)
          heads_of_group(log_sum_exp, config_, tile.group, 1).row(tile.row(i))[head] = state.log_sum_exp();
      }
  }

 private:
  struct Row {
    std::int64_t row;
    ColumnRange columns;
  };

  std::int64_t capacity() const { return queries() * heads_per_group_; }

  static bool uniform(std::span<const Row> rows) {
    for (const Row& row : rows)
      if (row.columns != rows[0].columns) return false;
    return true;
  }

  void attend_rows(const ColumnPanel<A>& keys, const RowPanel<A>& values, std::span<const Row> rows) {
    RowPointers<const A> q;
    RowPointers<A> scores, out;
    ColumnRange seen = rows[0].columns;
    for (std::size_t r = 0; r < kernel_rows; ++r) {  // a last, partial group of rows repeats its last row
      const std::size_t i = std::min(r, rows.size() - 1);
      q[r] = q_.data() + rows[i].row * d_qk_;
      scores[r] = scores_.data() + static_cast<std::int64_t>(i) * key_tile;
      out[r] = out_.data() + rows[i].row * out_stride_;
      seen = seen | rows[i].columns;
    }
    // S = Q K^T
    const ColumnRange columns = whole_kernel_tiles<A>(seen);
    for (std::int64_t column = columns.begin; column < columns.end; column += kernel_columns<A>) {
      multiply_kernel<Product::assign>(q, 1, keys.columns(column).data, key_tile, d_qk_, from_column(scores, column));
    }
    for (std::size_t r = 0; r < rows.size(); ++r) online_softmax(rows[r], columns, scores[r], out[r]);
    // O += P V
    const auto v = values.rows(seen.begin);
    RowPointers<const A> p;
    for (std::size_t r = 0; r < kernel_rows; ++r) p[r] = scores[r] + seen.begin;
    for (std::int64_t column = 0; column < d_v_; column += kernel_columns<A>) {
      multiply_kernel<Product::add>(p, 1, v.data + column, v.stride, seen.end - seen.begin, from_column(out, column));
    }
  }

  // Replaces S by P = exp(S - reference), 0 in columns that the row does not see, and rescales the output so far.
  void online_softmax(const Row& row, ColumnRange columns, A* scores, A* out) {
    using S = Simd<A>;
    constexpr A hidden = -std::numeric_limits<A>::infinity();
    Vector<A> maximum = S::broadcast(hidden);
    for (std::int64_t c = columns.begin; c < row.columns.begin; ++c) scores[c] = hidden;
    for (std::int64_t c = row.columns.end; c < columns.end; ++c) scores[c] = hidden;
    for (std::int64_t c = columns.begin; c < columns.end; c += S::lanes)
      maximum = cpu::maximum<A>(S::load(scores + c), maximum);
    SoftmaxState<A>& state = states_[static_cast<std::size_t>(row.row)];
    const A factor = state.raise(horizontal_maximum<A>(maximum));
    const A reference = state.reference();
    Vector<A> sum{};
    for (std::int64_t c = columns.begin; c < columns.end; c += S::lanes) {
      const Vector<A> p = exponential(S::load(scores + c) - reference);
      S::store(scores + c, p);
      sum += p;
    }
    state.add(factor, horizontal_sum<A>(sum));
    if (factor != A{1})
      for (std::int64_t c = 0; c < out_stride_; ++c) out[c] *= factor;
  }

  const Config config_;
  std::int64_t heads_per_group_;
  std::int64_t d_qk_;
  std::int64_t d_v_;
  std::int64_t out_stride_;
  Buffer<A> q_;       // [rows, d_qk]
  Buffer<A> out_;     // [rows, out_stride_]
  Buffer<A> scores_;  // [kernel_rows, key_tile]
  std::vector<SoftmaxState<A>> states_;
  std::vector<Row> rows_;
};

}  // namespace cpnsa::cpu
