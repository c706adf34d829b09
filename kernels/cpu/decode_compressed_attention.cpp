#include "kernels/cpu/attention_rows.hpp"
#include "kernels/cpu/decode_schedule.hpp"
#include "kernels/cpu/decode_spans.hpp"
#include "kernels/cpu/run_op.hpp"

namespace cpnsa::cpu {
namespace {

template <class T>
void run(const DecodeCompressedAttention& a) {
  using A = Arithmetic<T>;
  const Config& config = *a.config;
  const std::int64_t trailing = trailing_strides(config);
  AttentionRows<T> rows(config);
  KeySpans<T> spans(config);
  std::vector<VisibleKeys> visible;

  for_each_decode_tile(a, rows.queries(), [&](const DecodeSequence& sequence, const QueryTile& tile) {
    const std::int64_t last = visible_summaries(config, tile.position(tile.count - 1));
    rows.start(tile, static_cast<const T*>(a.q));
    for (std::int64_t first = 0; first < last; first += key_tile) {
      spans.start(tile.group, first, a.summaries.k, a.summaries.v);
      for_each_own_summary_run(a.summaries, sequence.slot, first + trailing,
                               std::min(first + key_tile, last) + trailing, [&](PageRun run) {
                                 run.begin -= trailing, run.end -= trailing;
                                 spans.load(run);
                               });
      spans.for_each([&](ColumnRange loaded) {
        const auto columns_seen = [&](std::int64_t position) {
          return loaded & ColumnRange{0, visible_summaries(config, position) - first};
        };
        list_visible(tile, columns_seen, visible);
        rows.attend(spans.keys(), spans.values(), visible);
      });
    }
    rows.finish(tile, static_cast<A*>(a.out), static_cast<A*>(a.log_sum_exp));
  });
}

}  // namespace

template <>
void run_op(const DecodeCompressedAttention& a) {
  visit(a.dtype, [&]<class T>(std::type_identity<T>) { run<T>(a); });
}

}  // namespace cpnsa::cpu
