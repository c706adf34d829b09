#include <array>
#include <vector>

#include "kernels/cpu/attention_rows.hpp"
#include "kernels/cpu/decode_schedule.hpp"
#include "kernels/cpu/decode_spans.hpp"
#include "kernels/cpu/gate.hpp"
#include "kernels/cpu/run_op.hpp"
#include "kernels/cpu/selected_union.hpp"
#include "kernels/cpu/window_tokens.hpp"

namespace cpnsa::cpu {
namespace {

template <class T>
class TokenAttention {
 public:
  using A = Arithmetic<T>;

  explicit TokenAttention(const DecodeTokenAttention& arguments)
      : a_(arguments), config_(*arguments.config), rows_(config_), spans_(config_) {
    const std::int64_t size = arguments.out ? arguments.tokens * config_.num_q_heads * config_.head_dim_v : 0;
    if (!a_.o_slc) own_[0].resize(static_cast<std::size_t>(size));
    if (!a_.o_win) own_[1].resize(static_cast<std::size_t>(size));
  }

  void run() {
    for_each_decode_tile(a_, rows_.queries(), [&](const DecodeSequence& sequence, const QueryTile& tile) {
      if (a_.selected_branch) {
        selected(sequence, tile);
        rows_.finish(tile, o_slc(), static_cast<A*>(a_.lse_slc));
      }
      if (a_.window_branch) {
        window(sequence, tile);
        rows_.finish(tile, o_win(), static_cast<A*>(a_.lse_win));
      }
      if (a_.out) combine(tile);
    });
  }

 private:
  A* o_slc() { return a_.o_slc ? static_cast<A*>(a_.o_slc) : own(0); }
  A* o_win() { return a_.o_win ? static_cast<A*>(a_.o_win) : own(1); }
  A* own(std::size_t branch) { return own_[branch].empty() ? nullptr : own_[branch].data(); }

  void selected(const DecodeSequence& sequence, const QueryTile& tile) {
    rows_.start(tile, static_cast<const T*>(a_.q));
    for (SelectedUnion picked(config_, tile, a_.selected); picked.next();) {
      const std::int64_t position = picked.block() * config_.select_block;
      const std::int64_t end = tokens_seen(config_, position, tile.position(picked.queries().back())).end;
      for (std::int64_t first = 0; first < end; first += key_tile) {
        const std::int64_t tile_begin = position + first, tile_end = position + std::min(first + key_tile, end);
        attend(a_.slc, sequence, tile, {tile_begin, tile_end}, tile_begin, [&](ColumnRange loaded) {
          for (const std::int64_t query : picked.queries()) {
            const ColumnRange seen =
                loaded & ColumnRange{0, tokens_seen(config_, position, tile.position(query)).end - first};
            if (!seen.empty()) visible_.push_back({query, seen});
          }
        });
      }
    }
  }

  void window(const DecodeSequence& sequence, const QueryTile& tile) {
    const ColumnRange reach = window_of(config_, tile.position(0)) | window_of(config_, tile.position(tile.count - 1));
    rows_.start(tile, static_cast<const T*>(a_.q));
    for (std::int64_t first = reach.begin / key_tile * key_tile; first < reach.end; first += key_tile)
      attend(a_.win, sequence, tile, reach & ColumnRange{first, first + key_tile}, first, [&](ColumnRange loaded) {
        const auto columns_seen = [&](std::int64_t position) {
          return columns_of(window_of(config_, position), first) & loaded;
        };
        list_visible(tile, columns_seen, visible_);
      });
  }

  /// Attends to the tokens of a key tile, whose column 0 is token `first`, that this rank holds. list(columns) appends
  /// to visible_ the queries that see some of the columns.
  template <class List>
  void attend(const PagedRows& pages, const DecodeSequence& sequence, const QueryTile& tile, ColumnRange tokens,
              std::int64_t first, List&& list) {
    spans_.start(tile.group, first, pages.k, pages.v);
    for_each_held_run(pages, sequence.slot, tokens.begin, tokens.end, [&](const PageRun& run) { spans_.load(run); });
    spans_.for_each([&](ColumnRange loaded) {
      visible_.clear();
      list(loaded);
      rows_.attend(spans_.keys(), spans_.values(), visible_);
    });
  }

  void combine(const QueryTile& tile) {
    const std::int64_t heads_per_group = config_.heads_per_group(), d_v = config_.head_dim_v;
    for (std::int64_t i = 0; i < tile.count; ++i)
      for (std::int64_t head = 0; head < heads_per_group; ++head) {
        const std::int64_t pair = tile.row(i) * config_.num_q_heads + tile.group * heads_per_group + head;
        const T* const gate = static_cast<const T*>(a_.gate) + 3 * pair;
        const A g0 = gate_value(config_.gate, widen(gate[0])), g1 = gate_value(config_.gate, widen(gate[1])),
                g2 = gate_value(config_.gate, widen(gate[2]));
        const A *const cmp = static_cast<const A*>(a_.o_cmp) + pair * d_v, *const slc = o_slc() + pair * d_v,
                       *const win = o_win() + pair * d_v;
        T* const out = static_cast<T*>(a_.out) + pair * d_v;
        for (std::int64_t c = 0; c < d_v; ++c) out[c] = narrow<T>(g0 * cmp[c] + g1 * slc[c] + g2 * win[c]);
      }
  }

  const DecodeTokenAttention& a_;
  const Config& config_;
  AttentionRows<T> rows_;
  KeySpans<T> spans_;
  std::vector<VisibleKeys> visible_;
  std::array<std::vector<A>, 2> own_;  // o_slc and o_win for the gate, where the caller does not want them
};

}  // namespace

template <>
void run_op(const DecodeTokenAttention& a) {
  visit(a.dtype, [&]<class T>(std::type_identity<T>) { TokenAttention<T>(a).run(); });
}

}  // namespace cpnsa::cpu
