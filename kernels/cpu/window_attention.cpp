#include "kernels/cpu/attention_rows.hpp"
#include "kernels/cpu/run_op.hpp"
#include "kernels/cpu/window_tokens.hpp"

namespace cpnsa::cpu {
namespace {

template <class T>
void run(const WindowAttention& a) {
  using A = Arithmetic<T>;
  const Config& config = *a.config;
  const std::int64_t d_qk = config.head_dim_qk, d_v = config.head_dim_v;
  AttentionRows<T> rows(config);
  ColumnPanel<A> keys(d_qk);
  RowPanel<A> values(d_v);
  std::vector<VisibleKeys> visible;

  for_each_query_tile(*a.queries, {0, config.num_kv_heads}, rows.queries(), [&](const QueryTile& tile) {
    const auto group_rows = [&](const void* tensor, std::int64_t dim) {
      return rows_of_group(static_cast<const T*>(tensor), config, tile.group, dim);
    };
    const ColumnRange reach = window_of(config, tile.position(0)) | window_of(config, tile.position(tile.count - 1));

    rows.start(tile, static_cast<const T*>(a.q));
    for (std::int64_t first = reach.begin / key_tile * key_tile; first < reach.end; first += key_tile) {
      values.start();
      for_each_run_of_tokens(*tile.segment, first, columns_of(reach, first), [&](const TokenRows& run) {
        keys.load(group_rows(run.halo ? a.halo_k : a.k, d_qk).from(run.row), run.columns);
        values.load(group_rows(run.halo ? a.halo_v : a.v, d_v).from(run.row), run.columns);
      });
      const auto columns_seen = [&](std::int64_t position) { return columns_of(window_of(config, position), first); };
      list_visible(tile, columns_seen, visible);
      rows.attend(keys, values, visible);
    }
    rows.finish(tile, static_cast<T*>(a.out), static_cast<A*>(a.log_sum_exp));
  });
}

}  // namespace

template <>
void run_op(const WindowAttention& a) {
  visit(a.dtype, [&]<class T>(std::type_identity<T>) { run<T>(a); });
}

}  // namespace cpnsa::cpu
