#include "src/forecast/work.hpp"

#include <algorithm>

#include "src/planning/at.hpp"

namespace cpnsa::forecasts {

Work work_of(const Config& config, std::span<const Segment> segments, std::int64_t own_summaries) {
  // (query, key) pairs of each branch, for one head.
  double compressed = 0, selected = 0, window = 0, rows = 0;
  for (const Segment& segment : segments)
    for (std::int64_t t = segment.position; t < segment.position + segment.rows; ++t) {
      const std::int64_t blocks = t / config.select_block + 1;
      compressed += static_cast<double>(config.summaries_of(t + 1));
      selected += static_cast<double>(blocks <= config.select_count ? t + 1
                                                                    : (config.select_count - 1) * config.select_block +
                                                                          t % config.select_block + 1);
      window += static_cast<double>(std::min(t + 1, config.window));
      rows += 1;
    }
  const auto heads = static_cast<double>(config.num_q_heads), dim_k = static_cast<double>(config.head_dim_qk),
             dim_v = static_cast<double>(config.head_dim_v);
  const double per_pair = 2 * heads * (dim_k + dim_v);

  double compress = 0;
  const auto add = [&](double dim, std::int64_t hidden_width) {
    const auto block = static_cast<double>(config.compress_block), hidden = static_cast<double>(hidden_width);
    const double product = config.compressor == Compressor::linear ? block * dim * dim
                           : config.compressor == Compressor::mlp  ? block * dim * hidden + hidden * dim
                                                                   : block * dim;
    compress += 2 * static_cast<double>(own_summaries * config.num_kv_heads) * product;
  };
  add(dim_k, config.compress_hidden_k);
  add(dim_v, config.compress_hidden_v);

  Work work;
  const auto set = [&](WorkKind kind, double forward, double backward) {
    at(work.forward, kind) = forward;
    at(work.backward, kind) = backward;
  };
  constexpr double backward_of_branch = 2.5;  // five products for two
  set(WorkKind::compress, compress, 2 * compress);
  set(WorkKind::compressed, per_pair * compressed, backward_of_branch * per_pair * compressed);
  set(WorkKind::importance, 2 * heads * dim_k * compressed, 0);
  set(WorkKind::selected, per_pair * selected, backward_of_branch * per_pair * selected);
  set(WorkKind::window, per_pair * window, backward_of_branch * per_pair * window);
  set(WorkKind::gate, rows * heads * dim_v, rows * heads * dim_v);
  return work;
}

}  // namespace cpnsa::forecasts
