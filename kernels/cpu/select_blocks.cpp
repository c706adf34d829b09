#include <algorithm>
#include <vector>

#include "kernels/cpu/importance.hpp"
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

  explicit BlockSelector(const SelectBlocks& arguments)
      : a_(arguments), config_(*arguments.config), rows_(config_), keys_(config_.head_dim_qk), importance_(key_tile) {
    for (std::int64_t i = 0; i < queries(); ++i) tops_.emplace_back(config_);
  }

  std::int64_t queries() const { return rows_.queries(); }

  void select(const QueryTile& tile) {
    for (std::int64_t i = 0; i < tile.count; ++i) tops_[static_cast<std::size_t>(i)].start(tile.position(i));
    // Positions ascend, and a query has a choice only if it has more than n causal blocks.
    const std::int64_t last = tops_[static_cast<std::size_t>(tile.count - 1)].chooses()
                                  ? visible_summaries(config_, tile.position(tile.count - 1))
                                  : 0;
    if (last > 0) rows_.start(tile, static_cast<const T*>(a_.q));
    const auto keys = rows_of_group(static_cast<const T*>(a_.keys), config_, tile.group, config_.head_dim_qk);
    const auto sums = heads_of_group(static_cast<const A*>(a_.log_sum_exp), config_, tile.group, 1);
    for (std::int64_t first = 0; first < last; first += key_tile) {
      keys_.load(keys.from(tile.segment->summary + first), {0, std::min(key_tile, last - first)});
      for (std::int64_t i = 0; i < tile.count; ++i) {
        auto& top = tops_[static_cast<std::size_t>(i)];
        const std::int64_t seen = std::min(key_tile, visible_summaries(config_, tile.position(i)) - first);
        if (!top.chooses() || seen <= 0) continue;
        rows_.compute(i, keys_, seen, sums.row(tile.row(i)), importance_.data());
        top.add(first, importance_.data(), seen);
      }
    }
    for (std::int64_t i = 0; i < tile.count; ++i)
      tops_[static_cast<std::size_t>(i)].finish(a_.selected + (tile.row(i) * config_.num_kv_heads + tile.group) *
                                                                  config_.select_count);
  }

 private:
  const SelectBlocks& a_;
  const Config& config_;
  Importance<T> rows_;
  ColumnPanel<A> keys_;
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
