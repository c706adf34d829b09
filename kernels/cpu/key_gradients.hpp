#pragma once

#include <cstdint>
#include <span>

#include "kernels/cpu/gradient_rows.hpp"
#include "kernels/cpu/panels.hpp"
#include "kernels/cpu/query_tile.hpp"

namespace cpnsa::cpu {

/// A tile of keys in the backward of a branch: its keys, its values, and the gradients of both. The branches differ
/// only in the pairs of a tile of keys and rows that they pass to backward().
template <class A>
class KeyGradients {
 public:
  KeyGradients(const Config& config, std::int64_t rows)
      : d_qk_(config.head_dim_qk),
        d_v_(config.head_dim_v),
        key_columns_(d_qk_),
        key_rows_(d_qk_),
        value_columns_(d_v_),
        p_(rows * key_tile),
        ds_(rows * key_tile),
        dkeys_(key_tile * padded<A>(d_qk_)),
        dvalues_(key_tile * padded<A>(d_v_)) {}

  /// Starts a tile: clears its gradients.
  void start() {
    key_rows_.start();
    std::fill_n(dkeys_.data(), key_tile * padded<A>(d_qk_), A{0});
    std::fill_n(dvalues_.data(), key_tile * padded<A>(d_v_), A{0});
  }

  /// Loads keys and values into columns `where` of the tile; row(0) of each source is for column where.begin.
  template <class T>
  void load(Strided<const T> k, Strided<const T> v, ColumnRange where) {
    key_columns_.load(k, where);
    key_rows_.load(k, where);
    value_columns_.load(v, where);
  }

  /// Adds the gradients that come through the queries of `visible`, which are consecutive, to those of the keys and
  /// values, and to the queries' dq.
  void backward(GradientRows<A>& rows, std::span<const VisibleKeys> visible) {
    if (rows.finite() && key_rows_.finite()) return backward_rows(rows, visible);
    // 0 times a value that is not finite is NaN, so only rows that see the same keys may be computed together.
    while (!visible.empty()) {
      std::size_t count = 1;
      while (count < visible.size() && visible[count].columns == visible[0].columns) ++count;
      backward_rows(rows, visible.first(count));
      visible = visible.subspan(count);
    }
  }

  /// dk, dv += the gradients of columns `where` of the tile; row(0) of each is for column where.begin.
  void finish(Strided<A> dk, Strided<A> dv, ColumnRange where) const {
    for (std::int64_t key = where.begin; key < where.end; ++key) {
      add_row(dkeys_.data() + key * padded<A>(d_qk_), d_qk_, dk.row(key - where.begin));
      add_row(dvalues_.data() + key * padded<A>(d_v_), d_v_, dv.row(key - where.begin));
    }
  }

 private:
  void backward_rows(GradientRows<A>& rows, std::span<const VisibleKeys> visible) {
    if (visible.empty()) return;
    ColumnRange seen = visible[0].columns;
    for (const VisibleKeys& query : visible) seen = seen | query.columns;
    const std::int64_t heads_per_group = rows.heads_per_group();
    const std::int64_t first = visible[0].query * heads_per_group;
    const std::int64_t count = static_cast<std::int64_t>(visible.size()) * heads_per_group;
    for (std::int64_t row = 0; row < count; row += kernel_rows)
      backward_scores(rows, first, row, std::min(kernel_rows, count - row), visible, seen);

    const std::int64_t keys = seen.end - seen.begin;
    // dV += P^T dO
    multiply<Product::add, A>({p_.data() + seen.begin, 1, key_tile}, {rows.dout(first), rows.dout_stride()},
                              {dvalues_.data() + seen.begin * padded<A>(d_v_), padded<A>(d_v_)}, keys, d_v_, count);
    // dK += dS^T Q
    multiply<Product::add, A>({ds_.data() + seen.begin, 1, key_tile}, {rows.q(first), rows.q_stride()},
                              {dkeys_.data() + seen.begin * padded<A>(d_qk_), padded<A>(d_qk_)}, keys, d_qk_, count);
  }

  // Computes P, dS and dQ of the visible rows [row, row + count). P and dS are 0 in the columns of `seen` that a row
  // does not see.
  void backward_scores(GradientRows<A>& rows, std::int64_t first, std::int64_t row, std::int64_t count,
                       std::span<const VisibleKeys> visible, ColumnRange seen) {
    RowPointers<const A> q, dout, ds_seen;
    RowPointers<A> p, ds, dq;
    const auto columns_of_row = [&](std::int64_t r) {
      return visible[static_cast<std::size_t>((row + r) / rows.heads_per_group())].columns;
    };
    ColumnRange here = columns_of_row(0);
    for (std::int64_t r = 0; r < kernel_rows; ++r) {  // a last, partial group of rows repeats its last row
      const std::int64_t i = row + std::min(r, count - 1);
      q[r] = rows.q(first + i), dout[r] = rows.dout(first + i), dq[r] = rows.dq(first + i);
      p[r] = p_.data() + i * key_tile, ds[r] = ds_.data() + i * key_tile;
      here = here | columns_of_row(std::min(r, count - 1));
    }
    const ColumnRange columns = whole_kernel_tiles<A>(here);
    for (std::int64_t column = columns.begin; column < columns.end; column += kernel_columns<A>) {
      // S = Q K^T, dP = dO V^T
      multiply_kernel<Product::assign>(q, 1, key_columns_.columns(column).data, key_tile, d_qk_,
                                       from_column(p, column));
      multiply_kernel<Product::assign>(dout, 1, value_columns_.columns(column).data, key_tile, d_v_,
                                       from_column(ds, column));
    }
    for (std::int64_t r = 0; r < count; ++r)
      backward_softmax(columns_of_row(r), columns, seen, rows.log_sum_exp(first + row + r), rows.delta(first + row + r),
                       p[r], ds[r]);
    // dQ += dS K
    for (std::int64_t r = 0; r < kernel_rows; ++r) ds_seen[r] = ds[r] + here.begin;
    const auto keys = key_rows_.rows(here.begin);
    for (std::int64_t column = 0; column < d_qk_; column += kernel_columns<A>) {
      multiply_kernel<Product::add>(ds_seen, 1, keys.data + column, keys.stride, here.end - here.begin,
                                    from_column(dq, column));
    }
  }

  // Replaces S by P = exp(S - log_sum_exp), and dP by dS = P (dP - delta).
  static void backward_softmax(ColumnRange row, ColumnRange columns, ColumnRange seen, A log_sum_exp, A delta, A* p,
                               A* ds) {
    using S = Simd<A>;
    for (std::int64_t c = columns.begin; c < columns.end; c += S::lanes) {
      const Vector<A> weights = exponential(S::load(p + c) - log_sum_exp);
      S::store(p + c, weights);
      S::store(ds + c, weights * (S::load(ds + c) - delta));
    }
    for (std::int64_t c = std::min(seen.begin, columns.begin); c < row.begin; ++c) p[c] = ds[c] = A{0};
    for (std::int64_t c = row.end; c < std::max(seen.end, columns.end); ++c) p[c] = ds[c] = A{0};
  }

  std::int64_t d_qk_;
  std::int64_t d_v_;
  ColumnPanel<A> key_columns_;
  RowPanel<A> key_rows_;
  ColumnPanel<A> value_columns_;
  Buffer<A> p_;        // [rows, key_tile]
  Buffer<A> ds_;       // [rows, key_tile]
  Buffer<A> dkeys_;    // [key_tile, padded d_qk]
  Buffer<A> dvalues_;  // [key_tile, padded d_v]
};

}  // namespace cpnsa::cpu
