#include "src/steps/branch_attention.hpp"

namespace cpnsa {

void BranchAttention::window() const {
  if (layer_.plan.rows == 0) return;
  auto window = arguments<WindowAttention>();
  window.k = in_.k.win.data;
  window.v = in_.v.win.data;
  window.halo_k = saved_.window_halo.k;
  window.halo_v = saved_.window_halo.v;
  window.out = out_.out[win];
  window.log_sum_exp = out_.log_sum_exp[win];
  device_.run(window, stream_);
}

void BranchAttention::compressed() const {
  if (layer_.plan.rows == 0) return;
  auto compressed = arguments<CompressedAttention>();
  compressed.keys = saved_.summaries.k;
  compressed.values = saved_.summaries.v;
  compressed.out = out_.out[cmp];
  compressed.log_sum_exp = out_.log_sum_exp[cmp];
  device_.run(compressed, stream_);
}

void BranchAttention::select() const {
  if (layer_.plan.rows == 0) return;
  auto select = arguments<SelectBlocks>();
  select.keys = saved_.summaries.k;
  select.log_sum_exp = out_.log_sum_exp[cmp];
  select.selected = saved_.selected;
  device_.run(select, stream_);
}

void BranchAttention::selected(const planning::ExchangeRound& round, const void* pool, const BlockLocation* table,
                               const CombineBranches* combine) const {
  if (layer_.plan.rows == 0) return;
  auto selected = arguments<SelectedAttention>();
  selected.k = in_.k.slc.data;
  selected.v = in_.v.slc.data;
  selected.pool = pool;
  selected.table = table;
  selected.selected = saved_.selected;
  selected.group_begin = round.group_begin;
  selected.group_end = round.group_end;
  selected.out = out_.out[slc];
  selected.log_sum_exp = out_.log_sum_exp[slc];
  selected.combine = combine;
  device_.run(selected, stream_);
}

}  // namespace cpnsa
