#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/panels.hpp"
#include "kernels/cpu/query_tile.hpp"
#include "kernels/cpu/run_op.hpp"
#include "kernels/cpu/top_blocks.hpp"

namespace cpnsa::cpu {
namespace {

template <class T>
class BlockSelector {
 public:
  using A = Arithmetic<T>;
  static constexpr std::int64_t rows_per_tile = 256;

  explicit BlockSelector(const SelectBlocks& arguments)
      : a_(arguments),
        config_(*arguments.config),
        heads_per_group_(config_.heads_per_group()),
        d_qk_(config_.head_dim_qk),
        keys_(d_qk_),
        q_(queries() * heads_per_group_ * d_qk_),
        scores_(kernel_rows * key_tile),
        importance_(key_tile) {
    for (std::int64_t i = 0; i < queries(); ++i) tops_.emplace_back(config_);
  }

  std::int64_t queries() const { return queries_per_tile(config_, rows_per_tile); }

  void select(const QueryTile& tile) {
    for (std::int64_t i = 0; i < tile.count; ++i) tops_[static_cast<std::size_t>(i)].start(tile.position(i));
    // Positions ascend, and a query has a choice only if it has more than n causal blocks.
    const std::int64_t last = tops_[static_cast<std::size_t>(tile.count - 1)].chooses()
                                  ? visible_summaries(config_, tile.position(tile.count - 1))
                                  : 0;
    if (last > 0) load_queries(config_, tile, static_cast<const T*>(a_.q), q_.data(), d_qk_);
    const auto keys = rows_of_group(static_cast<const T*>(a_.keys), config_, tile.group, d_qk_);
    for (std::int64_t first = 0; first < last; first += key_tile) {
      keys_.load(keys.from(tile.segment->summary + first), {0, std::min(key_tile, last - first)});
      for (std::int64_t i = 0; i < tile.count; ++i) {
        auto& top = tops_[static_cast<std::size_t>(i)];
        const std::int64_t seen = std::min(key_tile, visible_summaries(config_, tile.position(i)) - first);
        if (!top.chooses() || seen <= 0) continue;
        compute_importance(tile, i, seen);
        top.add(first, importance_.data(), seen);
      }
    }
    for (std::int64_t i = 0; i < tile.count; ++i)
      tops_[static_cast<std::size_t>(i)].finish(a_.selected + (tile.row(i) * config_.num_kv_heads + tile.group) *
                                                                  config_.select_count);
  }

 private:
  // importance_ = sum over the group's heads, ascending, of exp(S - log_sum_exp); S includes the softmax scale.
  void compute_importance(const QueryTile& tile, std::int64_t query, std::int64_t seen) {
    using S = Simd<A>;
    const A* log_sum_exp =
        heads_of_group(static_cast<const A*>(a_.log_sum_exp), config_, tile.group, 1).row(tile.row(query));
    const std::int64_t columns = padded<A>(seen);
    std::fill_n(importance_.data(), columns, A{0});
    for (std::int64_t first = 0; first < heads_per_group_; first += kernel_rows) {
      RowPointers<const A> q;
      RowPointers<A> scores;
      for (std::int64_t r = 0; r < kernel_rows; ++r) {  // a last, partial group of heads repeats its last head
        const std::int64_t head = std::min(first + r, heads_per_group_ - 1);
        q[r] = q_.data() + (query * heads_per_group_ + head) * d_qk_;
        scores[r] = scores_.data() + (head - first) * key_tile;
      }
      for (std::int64_t column = 0; column < columns; column += kernel_columns<A>) {
        multiply_kernel<Product::assign>(q, 1, keys_.columns(column).data, key_tile, d_qk_,
                                         from_column(scores, column));
      }
      for (std::int64_t head = first; head < std::min(first + kernel_rows, heads_per_group_); ++head)
        for (std::int64_t c = 0; c < columns; c += S::lanes) {
          const auto p = exponential(S::load(scores_.data() + (head - first) * key_tile + c) - log_sum_exp[head]);
          S::store(importance_.data() + c, S::load(importance_.data() + c) + p);
        }
    }
  }

  const SelectBlocks& a_;
  const Config& config_;
  std::int64_t heads_per_group_;
  std::int64_t d_qk_;
  ColumnPanel<A> keys_;
  Buffer<A> q_;           // [rows, d_qk]
  Buffer<A> scores_;      // [kernel_rows, key_tile]
  Buffer<A> importance_;  // [key_tile]
  std::vector<TopBlocks<A>> tops_;
};

}  // namespace

template <>
void run_op(const SelectBlocks& a) {
  visit(a.dtype, [&]<class T>(std::type_identity<T>) {
    BlockSelector<T> selector(a);
    for_each_query_tile(*a.queries, {0, a.config->num_kv_heads}, selector.queries(),
                        [&](const QueryTile& tile) { selector.select(tile); });
  });
}

}  // namespace cpnsa::cpu
