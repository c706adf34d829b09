#include "kernels/cpu/attention_rows.hpp"
#include "kernels/cpu/run_op.hpp"
#include "kernels/cpu/selected_union.hpp"

namespace cpnsa::cpu {
namespace {

template <class T>
void run(const SelectedAttention& a) {
  using A = Arithmetic<T>;
  const Config& config = *a.config;
  AttentionRows<T> rows(config);
  ColumnPanel<A> keys(config.head_dim_qk);
  RowPanel<A> values(config.head_dim_v);
  std::vector<VisibleKeys> visible;

  for_each_query_tile(*a.queries, {a.group_begin, a.group_end}, rows.queries(), [&](const QueryTile& tile) {
    rows.start(tile, static_cast<const T*>(a.q));
    for (SelectedUnion picked(config, tile, a.selected); picked.next();) {
      const std::int64_t position = picked.block() * config.select_block;
      const std::int64_t end = tokens_seen(config, position, tile.position(picked.queries().back())).end;
      if (end <= 0) continue;
      const auto source =
          rows_at(locate(a.table, config, tile, picked.block()), config, tile.group, static_cast<const T*>(a.k),
                  static_cast<const T*>(a.v), static_cast<const T*>(a.pool));
      for (std::int64_t first = 0; first < end; first += key_tile) {
        const ColumnRange loaded{0, std::min(key_tile, end - first)};
        keys.load(source.k.from(first), loaded);
        values.start();
        values.load(source.v.from(first), loaded);
        visible.clear();
        for (const std::int64_t query : picked.queries()) {
          const ColumnRange seen =
              loaded & ColumnRange{0, tokens_seen(config, position, tile.position(query)).end - first};
          if (!seen.empty()) visible.push_back({query, seen});
        }
        rows.attend(keys, values, visible);
      }
    }
    rows.finish(tile, static_cast<T*>(a.out), static_cast<A*>(a.log_sum_exp));
  });
}

}  // namespace

template <>
void run_op(const SelectedAttention& a) {
  visit(a.dtype, [&]<class T>(std::type_identity<T>) { run<T>(a); });
}

}  // namespace cpnsa::cpu
