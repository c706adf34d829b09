#pragma once

#include "kernels/cpu/panels.hpp"
#include "kernels/cpu/query_tile.hpp"

namespace cpnsa::cpu {

/// The importance of summaries for the queries of a tile: the sum over the group's heads of their probabilities. The
/// value for one summary does not depend on which others are in its key tile.
template <class T>
class Importance {
 public:
  using A = Arithmetic<T>;
  static constexpr std::int64_t rows_per_tile = 256;

  explicit Importance(const Config& config)
      : config_(config),
        heads_per_group_(config.heads_per_group()),
        d_qk_(config.head_dim_qk),
        q_(queries() * heads_per_group_ * d_qk_),
        scores_(kernel_rows * key_tile) {}

  std::int64_t queries() const { return queries_per_tile(config_, rows_per_tile); }

  /// Loads the tile's rows of q [rows, H, d_qk].
  void start(const QueryTile& tile, const T* q) { load_queries(config_, tile, q, q_.data(), d_qk_); }

  /// importance[0, padded(seen)) = sum over the group's heads, ascending, of exp(S - log_sum_exp[head]); S includes the
  /// softmax scale. `log_sum_exp` has the heads of the query's group.
  void compute(std::int64_t query, const ColumnPanel<A>& keys, std::int64_t seen, const A* log_sum_exp, A* importance) {
    using S = Simd<A>;
    const std::int64_t columns = padded<A>(seen);
    std::fill_n(importance, columns, A{0});
    for (std::int64_t first = 0; first < heads_per_group_; first += kernel_rows) {
      RowPointers<const A> q;
      RowPointers<A> scores;
      for (std::int64_t r = 0; r < kernel_rows; ++r) {  // a last, partial group of heads repeats its last head
        const std::int64_t head = std::min(first + r, heads_per_group_ - 1);
        q[r] = q_.data() + (query * heads_per_group_ + head) * d_qk_;
        scores[r] = scores_.data() + (head - first) * key_tile;
      }
      for (std::int64_t column = 0; column < columns; column += kernel_columns<A>) {
        multiply_kernel<Product::assign>(q, 1, keys.columns(column).data, key_tile, d_qk_, from_column(scores, column));
      }
      for (std::int64_t head = first; head < std::min(first + kernel_rows, heads_per_group_); ++head)
        for (std::int64_t c = 0; c < columns; c += S::lanes) {
          const auto p = exponential(S::load(scores_.data() + (head - first) * key_tile + c) - log_sum_exp[head]);
          S::store(importance + c, S::load(importance + c) + p);
        }
    }
  }

 private:
  const Config& config_;
  std::int64_t heads_per_group_;
  std::int64_t d_qk_;
  Buffer<A> q_;       // [rows, d_qk]
  Buffer<A> scores_;  // [kernel_rows, key_tile]
};

}  // namespace cpnsa::cpu
