#include "kernels/cpu/attention_rows.hpp"
#include "kernels/cpu/run_op.hpp"

namespace cpnsa::cpu {
namespace {

template <class T>
void run(const CompressedAttention& a) {
  using A = Arithmetic<T>;
  const Config& config = *a.config;
  AttentionRows<T> rows(config);
  ColumnPanel<A> keys(config.head_dim_qk);
  RowPanel<A> values(config.head_dim_v);
  std::vector<VisibleKeys> visible;

  for_each_query_tile(*a.queries, {0, config.num_kv_heads}, rows.queries(), [&](const QueryTile& tile) {
    const auto k = rows_of_group(static_cast<const T*>(a.keys), config, tile.group, config.head_dim_qk);
    const auto v = rows_of_group(static_cast<const T*>(a.values), config, tile.group, config.head_dim_v);
    const std::int64_t last = visible_summaries(config, tile.position(tile.count - 1));

    rows.start(tile, static_cast<const T*>(a.q));
    for (std::int64_t first = 0; first < last; first += key_tile) {
      const ColumnRange loaded{0, std::min(key_tile, last - first)};
      keys.load(k.from(tile.segment->summary + first), loaded);
      values.start();
      values.load(v.from(tile.segment->summary + first), loaded);
      const auto columns_seen = [&](std::int64_t position) {
        return loaded & ColumnRange{0, visible_summaries(config, position) - first};
      };
      list_visible(tile, columns_seen, visible);
      rows.attend(keys, values, visible);
    }
    rows.finish(tile, static_cast<T*>(a.out), static_cast<A*>(a.log_sum_exp));
  });
}

}  // namespace

template <>
void run_op(const CompressedAttention& a) {
  visit(a.dtype, [&]<class T>(std::type_identity<T>) { run<T>(a); });
}

}  // namespace cpnsa::cpu
