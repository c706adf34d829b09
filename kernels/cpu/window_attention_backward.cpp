#include "kernels/cpu/key_gradients.hpp"
#include "kernels/cpu/run_op.hpp"
#include "kernels/cpu/window_tokens.hpp"

namespace cpnsa::cpu {
namespace {

template <class T>
void run(const WindowAttentionBackward& a) {
  using A = Arithmetic<T>;
  const Config& config = *a.config;
  const std::int64_t d_qk = config.head_dim_qk, d_v = config.head_dim_v;
  GradientRows<A> rows(config);
  KeyGradients<A> keys(config, rows.capacity());
  std::vector<VisibleKeys> visible;

  for_each_query_tile(*a.queries, {0, config.num_kv_heads}, rows.queries(), [&](const QueryTile& tile) {
    const auto input = [&](const void* tensor, std::int64_t dim) {
      return rows_of_group(static_cast<const T*>(tensor), config, tile.group, dim);
    };
    const auto gradient = [&](void* tensor, std::int64_t dim) {
      return rows_of_group(static_cast<A*>(tensor), config, tile.group, dim);
    };
    const ColumnRange reach = window_of(config, tile.position(0)) | window_of(config, tile.position(tile.count - 1));

    rows.start(tile, static_cast<const T*>(a.q), a.gradient);
    for (std::int64_t first = reach.begin / key_tile * key_tile; first < reach.end; first += key_tile) {
      const ColumnRange loaded = columns_of(reach, first);
      keys.start();
      for_each_run_of_tokens(*tile.segment, first, loaded, [&](const TokenRows& run) {
        keys.load(input(run.halo ? a.halo_k : a.k, d_qk).from(run.row),
                  input(run.halo ? a.halo_v : a.v, d_v).from(run.row), run.columns);
      });
      const auto columns_seen = [&](std::int64_t position) { return columns_of(window_of(config, position), first); };
      list_visible(tile, columns_seen, visible);
      keys.backward(rows, visible);
      for_each_run_of_tokens(*tile.segment, first, loaded, [&](const TokenRows& run) {
        keys.finish(gradient(run.halo ? a.dhalo_k : a.dk, d_qk).from(run.row),
                    gradient(run.halo ? a.dhalo_v : a.dv, d_v).from(run.row), run.columns);
      });
    }
    rows.finish(tile, static_cast<A*>(a.dq));
  });
}

}  // namespace

template <>
void run_op(const WindowAttentionBackward& a) {
  visit(a.dtype, [&]<class T>(std::type_identity<T>) { run<T>(a); });
}

}  // namespace cpnsa::cpu
