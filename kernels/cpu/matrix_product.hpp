#pragma once

// The inner loop of all products of the device: C (+)= A B for kernel_rows rows and kernel_columns columns, in
// registers. Every element is the sum over ascending k, one multiply-add per k, so it does not depend on its position
// in a tile.

#include <algorithm>
#include <array>
#include <cstdint>

#include "kernels/cpu/simd.hpp"

namespace cpnsa::cpu {

inline constexpr std::int64_t kernel_rows = 4;
template <class A>
inline constexpr std::int64_t kernel_columns = 2 * Simd<A>::lanes;

/// `columns` rounded up to a multiple of kernel_columns: the stride of right-hand sides and results.
template <class A>
constexpr std::int64_t padded(std::int64_t columns) {
  return (columns + kernel_columns<A> - 1) / kernel_columns<A> * kernel_columns<A>;
}

enum class Product { assign, add };

/// The rows of a kernel tile.
template <class A>
using RowPointers = std::array<A*, kernel_rows>;

/// The same rows, from column `column` on.
template <class A>
RowPointers<A> from_column(RowPointers<A> rows, std::int64_t column) {
  for (A*& row : rows) row += column;
  return rows;
}

/// c[r][j] (+)= sum over k < depth of a[r][k a_step] b[k b_stride + j] for kernel_rows rows r and kernel_columns
/// columns j. The same row may be given several times.
template <Product mode, class A>
inline void multiply_kernel(const RowPointers<const A>& a, std::int64_t a_step, const A* b, std::int64_t b_stride,
                            std::int64_t depth, const RowPointers<A>& c) {
  using S = Simd<A>;
  Vector<A> sum[kernel_rows][2];
  for (int r = 0; r < kernel_rows; ++r) {
    sum[r][0] = mode == Product::add ? S::load(c[r]) : Vector<A>{};
    sum[r][1] = mode == Product::add ? S::load(c[r] + S::lanes) : Vector<A>{};
  }
  const A *a0 = a[0], *a1 = a[1], *a2 = a[2], *a3 = a[3];
  for (std::int64_t k = 0; k < depth; ++k, b += b_stride, a0 += a_step, a1 += a_step, a2 += a_step, a3 += a_step) {
    const Vector<A> b0 = S::load(b), b1 = S::load(b + S::lanes);
    sum[0][0] += *a0 * b0, sum[0][1] += *a0 * b1;
    sum[1][0] += *a1 * b0, sum[1][1] += *a1 * b1;
    sum[2][0] += *a2 * b0, sum[2][1] += *a2 * b1;
    sum[3][0] += *a3 * b0, sum[3][1] += *a3 * b1;
  }
  for (int r = 0; r < kernel_rows; ++r) {
    S::store(c[r], sum[r][0]);
    S::store(c[r] + S::lanes, sum[r][1]);
  }
}

/// A left-hand side: element (row, k) is data[row row_stride + k step], so it may also be a transpose.
template <class A>
struct LeftSide {
  const A* data;
  std::int64_t row_stride;
  std::int64_t step;
};

/// A right-hand side or a result: rows of padded() columns.
template <class A>
struct Rows {
  A* data;
  std::int64_t stride;
};

/// c [rows, columns] (+)= a [rows, depth] b [depth, columns]; columns are rounded up to whole kernel tiles.
template <Product mode, class A>
void multiply(LeftSide<A> a, Rows<const A> b, Rows<A> c, std::int64_t rows, std::int64_t columns, std::int64_t depth) {
  for (std::int64_t row = 0; row < rows; row += kernel_rows) {
    RowPointers<const A> a_rows;
    RowPointers<A> c_rows;
    for (std::int64_t r = 0; r < kernel_rows; ++r) {  // a last, partial group of rows repeats its last row
      const std::int64_t i = std::min(row + r, rows - 1);
      a_rows[r] = a.data + i * a.row_stride;
      c_rows[r] = c.data + i * c.stride;
    }
    for (std::int64_t column = 0; column < columns; column += kernel_columns<A>) {
      multiply_kernel<mode>(a_rows, a.step, b.data + column, b.stride, depth, from_column(c_rows, column));
    }
  }
}

}  // namespace cpnsa::cpu
