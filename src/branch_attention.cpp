#include "src/branch_attention.hpp"

namespace cpnsa {

void BranchAttention::window() const {
  if (a.plan.rows == 0) return;
  auto window = a.stage<WindowAttention>(scratch);
  window.queries = a.queries.get();
  window.q = in.q.data;
  window.k = in.k.win.data;
  window.v = in.v.win.data;
  window.halo_k = kept.window_halo_k;
  window.halo_v = kept.window_halo_v;
  window.out = out.o_win;
  window.log_sum_exp = out.lse_win;
  a.device.run(window, stream);
}

void BranchAttention::compressed() const {
  if (a.plan.rows == 0) return;
  auto compressed = a.stage<CompressedAttention>(scratch);
  compressed.queries = a.queries.get();
  compressed.q = in.q.data;
  compressed.keys = kept.summary_keys;
  compressed.values = kept.summary_values;
  compressed.out = out.o_cmp;
  compressed.log_sum_exp = out.lse_cmp;
  a.device.run(compressed, stream);
}

void BranchAttention::selected(const planning::ExchangeRound& round, const void* pool, const BlockLocation* table,
                               const CombineBranches* combine) const {
  if (a.plan.rows == 0) return;
  auto selected = a.stage<SelectedAttention>(scratch);
  selected.queries = a.queries.get();
  selected.q = in.q.data;
  selected.k = in.k.slc.data;
  selected.v = in.v.slc.data;
  selected.pool = pool;
  selected.table = table;
  selected.selected = kept.selected;
  selected.group_begin = round.head_begin;
  selected.group_end = round.head_end;
  selected.out = out.o_slc;
  selected.log_sum_exp = out.lse_slc;
  selected.combine = combine;
  a.device.run(selected, stream);
}

}  // namespace cpnsa
