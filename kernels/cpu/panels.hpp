#pragma once

// Tiles of keys or values, widened once and then read by many query rows. Tiles start at multiples of key_tile, counted
// from the first summary or token of the document, or the first token of the block, never from the start of a segment.
// So the order in which a row sums over its keys depends only on the row.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/cpu/buffer.hpp"
#include "kernels/cpu/matrix_product.hpp"
#include "kernels/cpu/scalar.hpp"

namespace cpnsa::cpu {

inline constexpr std::int64_t key_tile = 64;

/// Columns of a key tile, [begin, end).
struct ColumnRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;

  bool empty() const { return begin >= end; }
  bool operator==(const ColumnRange&) const = default;
  ColumnRange operator&(ColumnRange other) const { return {std::max(begin, other.begin), std::min(end, other.end)}; }
  /// The smallest range that holds both.
  ColumnRange operator|(ColumnRange other) const { return {std::min(begin, other.begin), std::max(end, other.end)}; }
};

/// Rows of a strided tensor of storage type T.
template <class T>
struct Strided {
  T* data = nullptr;
  std::int64_t stride = 0;

  T* row(std::int64_t i) const { return data + i * stride; }
  Strided from(std::int64_t i) const { return {data + i * stride, stride}; }
};

/// destination = source, widened, times factor. Returns whether every element of the result is finite.
template <class T>
bool widen_row(const T* source, std::int64_t count, Arithmetic<T>* destination, Arithmetic<T> factor = 1) {
  using A = Arithmetic<T>;
  int unbounded = 0;
#pragma omp simd reduction(| : unbounded)
  for (std::int64_t i = 0; i < count; ++i) {
    destination[i] = widen(source[i]) * factor;
    unbounded |= !(std::abs(destination[i]) <= std::numeric_limits<A>::max());
  }
  return unbounded == 0;
}

/// destination[0, count) += source[0, count)
template <class A>
void add_row(const A* source, std::int64_t count, A* destination) {
  for (std::int64_t c = 0; c < count; ++c) destination[c] += source[c];
}

/// Keys or values as rows [key_tile, padded(dim)]: the right-hand side of P V and of dS K.
template <class A>
class RowPanel {
 public:
  explicit RowPanel(std::int64_t dim) : dim_(dim), stride_(padded<A>(dim)), data_(key_tile * stride_) {}

  /// Loads rows `where` of the tile; source.row(0) is row where.begin.
  template <class T>
  void load(Strided<const T> source, ColumnRange where) {
    for (std::int64_t i = where.begin; i < where.end; ++i)
      finite_ &= widen_row(source.row(i - where.begin), dim_, data_.data() + i * stride_);
  }
  void start() { finite_ = true; }

  /// True if every element loaded since start() is finite.
  bool finite() const { return finite_; }
  Rows<const A> rows(std::int64_t first = 0) const { return {data_.data() + first * stride_, stride_}; }

 private:
  std::int64_t dim_;
  std::int64_t stride_;
  Buffer<A> data_;
  bool finite_ = true;
};

/// Keys or values transposed, [dim, key_tile]: the right-hand side of Q K^T and of dO V^T.
template <class A>
class ColumnPanel {
 public:
  explicit ColumnPanel(std::int64_t dim) : dim_(dim), row_(dim), data_(dim * key_tile) {}

  template <class T>
  void load(Strided<const T> source, ColumnRange where) {
    for (std::int64_t i = where.begin; i < where.end; ++i) {
      widen_row(source.row(i - where.begin), dim_, row_.data());
      for (std::int64_t c = 0; c < dim_; ++c) data_[c * key_tile + i] = row_[c];
    }
  }

  std::int64_t dim() const { return dim_; }
  Rows<const A> columns(std::int64_t first = 0) const { return {data_.data() + first, key_tile}; }

 private:
  std::int64_t dim_;
  Buffer<A> row_;
  Buffer<A> data_;
};

/// The range, extended to whole multiples of kernel_columns.
template <class A>
ColumnRange whole_kernel_tiles(ColumnRange range) {
  return {range.begin / kernel_columns<A> * kernel_columns<A>, padded<A>(range.end)};
}

}  // namespace cpnsa::cpu
