#include "kernels/cpu/key_gradients.hpp"
#include "kernels/cpu/run_op.hpp"
#include "kernels/cpu/selected_union.hpp"

namespace cpnsa::cpu {
namespace {

template <class T>
void run(const SelectedAttentionBackward& a) {
  using A = Arithmetic<T>;
  const Config& config = *a.config;
  GradientRows<A> rows(config);
  GradientRows<A> picking(config);  // the rows of the queries that selected the block
  KeyGradients<A> keys(config, rows.capacity());
  std::vector<VisibleKeys> visible;

  for_each_query_tile(*a.queries, {a.group_begin, a.group_end}, rows.queries(), [&](const QueryTile& tile) {
    rows.start(tile, static_cast<const T*>(a.q), a.gradient);
    for (SelectedUnion picked(config, tile, a.selected); picked.next();) {
      const std::vector<std::int64_t>& queries = picked.queries();
      const std::int64_t position = picked.block() * config.select_block;
      const std::int64_t end = tokens_seen(config, position, tile.position(queries.back())).end;
      if (end <= 0) continue;
      const BlockLocation location = locate(a.table, config, tile, picked.block());
      const auto source = rows_at(location, config, tile.group, static_cast<const T*>(a.k), static_cast<const T*>(a.v),
                                  static_cast<const T*>(a.pool));
      const auto gradient =
          rows_at(location, config, tile.group, static_cast<A*>(a.dk), static_cast<A*>(a.dv), static_cast<A*>(a.dpool));
      picking.gather(rows, queries);
      for (std::int64_t first = 0; first < end; first += key_tile) {
        const ColumnRange loaded{0, std::min(key_tile, end - first)};
        keys.start();
        keys.load(source.k.from(first), source.v.from(first), loaded);
        visible.clear();
        for (std::size_t i = 0; i < queries.size(); ++i) {
          const ColumnRange seen =
              loaded & ColumnRange{0, tokens_seen(config, position, tile.position(queries[i])).end - first};
          if (!seen.empty()) visible.push_back({static_cast<std::int64_t>(i), seen});
        }
        keys.backward(picking, visible);
        keys.finish(gradient.k.from(first), gradient.v.from(first), loaded);
      }
      picking.scatter(rows, queries);
    }
    rows.finish(tile, static_cast<A*>(a.dq));
  });
}

}  // namespace

template <>
void run_op(const SelectedAttentionBackward& a) {
  visit(a.dtype, [&]<class T>(std::type_identity<T>) { run<T>(a); });
}

}  // namespace cpnsa::cpu
