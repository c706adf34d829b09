#include "kernels/cpu/key_gradients.hpp"
#include "kernels/cpu/run_op.hpp"

namespace cpnsa::cpu {
namespace {

template <class T>
void run(const CompressedAttentionBackward& a) {
  using A = Arithmetic<T>;
  const Config& config = *a.config;
  const std::int64_t d_qk = config.head_dim_qk, d_v = config.head_dim_v;
  GradientRows<A> rows(config);
  KeyGradients<A> keys(config, rows.capacity());
  std::vector<VisibleKeys> visible;

  for_each_query_tile(*a.queries, {0, config.num_kv_heads}, rows.queries(), [&](const QueryTile& tile) {
    const std::int64_t last = visible_summaries(config, tile.position(tile.count - 1));
    if (last == 0) return;
    rows.start(tile, static_cast<const T*>(a.q), a.gradient);
    for (std::int64_t first = 0; first < last; first += key_tile) {
      const ColumnRange loaded{0, std::min(key_tile, last - first)};
      const std::int64_t row = tile.segment->summary + first;
      keys.start();
      keys.load(rows_of_group(static_cast<const T*>(a.keys), config, tile.group, d_qk).from(row),
                rows_of_group(static_cast<const T*>(a.values), config, tile.group, d_v).from(row), loaded);
      const auto columns_seen = [&](std::int64_t position) {
        return loaded & ColumnRange{0, visible_summaries(config, position) - first};
      };
      list_visible(tile, columns_seen, visible);
      keys.backward(rows, visible);
      keys.finish(rows_of_group(static_cast<A*>(a.dkeys), config, tile.group, d_qk).from(row),
                  rows_of_group(static_cast<A*>(a.dvalues), config, tile.group, d_v).from(row), loaded);
    }
    rows.finish(tile, static_cast<A*>(a.dq));
  });
}

}  // namespace

template <>
void run_op(const CompressedAttentionBackward& a) {
  visit(a.dtype, [&]<class T>(std::type_identity<T>) { run<T>(a); });
}

}  // namespace cpnsa::cpu
