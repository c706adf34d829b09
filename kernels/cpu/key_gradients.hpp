#pragma once

#include <cstdint>
#include <span>

#include "kernels/cpu/gradient_rows.hpp"
#include "kernels/cpu/panels.hpp"
#include "kernels/cpu/query_tile.hpp"

namespace cpnsa::cpu {

/// A tile of keys in the backward of a branch: its keys, its values, and the gradients of both. The branches differ
/// only in which tiles of keys meet which rows.
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

  /// Starts a tile with no keys.
  void start() {
    key_rows_.start();
    std::fill_n(dkeys_.data(), key_tile * padded<A>(d_qk_), A{0});
    std::fill_n(dvalues_.data(), key_tile * padded<A>(d_v_), A{0});
  }

  /// Loads keys and values `where` of the tile; row(0) of the sources is that of where.begin.
  template <class T>
  void load(Strided<const T> k, Strided<const T> v, ColumnRange where) {
    key_columns_.load(k, where);
    key_rows_.load(k, where);
    value_columns_.load(v, where);
  }

  /// Takes in the gradients that come through queries `visible`, which follow one another, and adds to their dq.
  void backward(GradientRows<A>& rows, std::span<const VisibleKeys> visible) {
    if (rows.finite() && key_rows_.finite()) return backward_rows(rows, visible);
    // A weight of 0 would not keep what a row does not see out of a sum: only rows that see the same go together.
    while (!visible.empty()) {
      std::size_t count = 1;
      while (count < visible.size() && visible[count].columns == visible[0].columns) ++count;
      backward_rows(rows, visible.first(count));
      visible = visible.subspan(count);
    }
  }

  /// dk, dv += the gradients of keys `where` of the tile.
  void finish(Strided<A> dk, Strided<A> dv, ColumnRange where) const {
    for (std::int64_t key = where.begin; key < where.end; ++key) {
      add_row(dkeys_.data() + key * padded<A>(d_qk_), d_qk_, dk.row(key - where.begin));
      add_row(dvalues_.data() + key * padded<A>(d_v_), d_v_, dv.row(key - where.begin));
    }
  }

 private:
  static void add_row(const A* source, std::int64_t count, A* destination) {
    for (std::int64_t c = 0; c < count; ++c) destination[c] += source[c];
  }

  void backward_rows(GradientRows<A>& rows, std::span<const VisibleKeys> visible) {
    if (visible.empty()) return;
    ColumnRange seen = visible[0].columns;
    for (const VisibleKeys& query : visible) seen = seen | query.columns;
    const std::int64_t heads = rows.heads(), first = visible[0].query * heads;
    const std::int64_t count = static_cast<std::int64_t>(visible.size()) * heads;
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

  // P and dS of rows [row, row + count) of the visible ones, 0 in what of `seen` a row does not see, and their dQ.
  void backward_scores(GradientRows<A>& rows, std::int64_t first, std::int64_t row, std::int64_t count,
                       std::span<const VisibleKeys> visible, ColumnRange seen) {
    const A *q[kernel_rows], *dout[kernel_rows], *ds_seen[kernel_rows];
    A *p[kernel_rows], *ds[kernel_rows], *dq[kernel_rows];
    const auto columns_of_row = [&](std::int64_t r) {
      return visible[static_cast<std::size_t>((row + r) / rows.heads())].columns;
    };
    ColumnRange here = columns_of_row(0);
    for (std::int64_t r = 0; r < kernel_rows; ++r) {  // what is left over repeats the last row
      const std::int64_t i = row + std::min(r, count - 1);
      q[r] = rows.q(first + i), dout[r] = rows.dout(first + i), dq[r] = rows.dq(first + i);
      p[r] = p_.data() + i * key_tile, ds[r] = ds_.data() + i * key_tile;
      here = here | columns_of_row(std::min(r, count - 1));
    }
    const ColumnRange columns = whole_kernel_tiles<A>(here);
    for (std::int64_t column = columns.begin; column < columns.end; column += kernel_columns<A>) {
      A* const s_tile[kernel_rows] = {p[0] + column, p[1] + column, p[2] + column, p[3] + column};
      A* const dp_tile[kernel_rows] = {ds[0] + column, ds[1] + column, ds[2] + column, ds[3] + column};
      // S = Q K^T, dP = dO V^T
      multiply_kernel<Product::assign>(q, 1, key_columns_.columns(column).data, key_tile, d_qk_, s_tile);
      multiply_kernel<Product::assign>(dout, 1, value_columns_.columns(column).data, key_tile, d_v_, dp_tile);
    }
    for (std::int64_t r = 0; r < count; ++r)
      backward_softmax(columns_of_row(r), columns, seen, rows.log_sum_exp(first + row + r), rows.delta(first + row + r),
                       p[r], ds[r]);
    // dQ += dS K
    for (std::int64_t r = 0; r < kernel_rows; ++r) ds_seen[r] = ds[r] + here.begin;
    const auto keys = key_rows_.rows(here.begin);
    for (std::int64_t column = 0; column < d_qk_; column += kernel_columns<A>) {
      A* const tile[kernel_rows] = {dq[0] + column, dq[1] + column, dq[2] + column, dq[3] + column};
      multiply_kernel<Product::add>(ds_seen, 1, keys.data + column, keys.stride, here.end - here.begin, tile);
    }
  }

  // P = exp(S - log_sum_exp) in place of S, dS = P (dP - delta) in place of dP.
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
