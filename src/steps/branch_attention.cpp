#include "src/steps/branch_attention.hpp"

namespace cpnsa {

RotateRows summary_rotation(const LayerPlan& layer, const LayerLists& lists, const SummaryRotation& rotation,
                            void* data, DType dtype, bool inverse) {
  return {.data = data,
          .cos = rotation.cos.data,
          .sin = rotation.sin.data,
          .heads = layer.config.num_kv_heads,
          .dim = layer.config.head_dim_qk,
          .pairs = rotation.cos.shape[1],
          .interleaved = rotation.interleaved,
          .inverse = inverse,
          .dtype = dtype,
          .ranges = lists.documents_summaries.view()};
}

void BranchAttention::clear(Branch branch) const {
  device_.fill_zero(out_.out[branch], LayerSizes::bytes(layer_.plan.rows, layer_.sizes.out_width, layer_.sizes.element),
                    stream_);
}

void BranchAttention::add_sinks(Branch branch, const TensorView& sinks) const {
  if (!sinks) return;
  auto add = layer_.arguments<AddSinks>(scratch_);
  add.rows = layer_.plan.rows;
  add.sinks = sinks.data;
  add.out = out_.out[branch];
  add.log_sum_exp = out_.log_sum_exp[branch];
  device_.run(add, stream_);
}

void BranchAttention::window() const {
  if (layer_.plan.rows == 0) return;
  if (!layer_.has_branch(win)) return clear(win);
  auto window = arguments<WindowAttention>();
  window.k = in_.k.win.data;
  window.v = in_.v.win.data;
  window.halo_k = saved_.window_halo.k;
  window.halo_v = saved_.window_halo.v;
  window.out = out_.out[win];
  window.log_sum_exp = out_.log_sum_exp[win];
  device_.run(window, stream_);
  add_sinks(win, in_.sink_win);
}

void BranchAttention::compressed() const {
  if (layer_.plan.rows == 0 || !layer_.needs_summaries()) return;
  auto compressed = arguments<CompressedAttention>();
  compressed.q = compressed_query();
  compressed.keys = saved_.summaries.k;
  compressed.values = saved_.summaries.v;
  compressed.out = out_.out[cmp];
  compressed.log_sum_exp = out_.log_sum_exp[cmp];
  device_.run(compressed, stream_);
}

void BranchAttention::clear_compressed() const {
  if (layer_.plan.rows > 0 && !layer_.has_branch(cmp)) clear(cmp);
}

void BranchAttention::select() const {
  if (layer_.plan.rows == 0) return;
  auto select = arguments<SelectBlocks>();
  select.q = compressed_query();
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

void BranchAttention::finish_selected() const {
  if (layer_.plan.rows == 0) return;
  if (!layer_.has_branch(slc)) return clear(slc);
  add_sinks(slc, in_.sink_slc);
}

}  // namespace cpnsa
