#include "src/layer/buffers.hpp"

#include <algorithm>

#include "comm/all_reduce.hpp"
#include "src/layer/parameters.hpp"

namespace cpnsa {

BranchBuffers::BranchBuffers(Arena& arena, const LayerSizes& sizes, Selected selected) {
  RowArena outputs(arena, sizes, sizes.element), sums(arena, sizes, sizes.accumulated);
  out[cmp] = outputs.rows(sizes.rows, sizes.out_width);
  out[win] = outputs.rows(sizes.rows, sizes.out_width);
  if (selected == Selected::stored) out[slc] = outputs.rows(sizes.rows, sizes.out_width);
  for (void*& row_sums : log_sum_exp) row_sums = sums.rows(sizes.rows, sizes.q_heads);
}

std::size_t BranchBuffers::output_bytes(const LayerSizes& sizes) {
  Arena counted;
  RowArena outputs(counted, sizes, sizes.element);
  for (int branch = 0; branch < 3; ++branch) outputs.rows(sizes.rows, sizes.out_width);
  return counted.used();
}

namespace {

BranchBuffers forward_branches(Arena& arena, const LayerSizes& sizes) {
  using Selected = BranchBuffers::Selected;
  return {arena, sizes, sizes.forward_stores_o_selected ? Selected::stored : Selected::not_stored};
}

/// Takes the parts of a window, of the size that the largest rank's has; parts that no rank reads, and those of a layer
/// that does not pull, have none.
class WindowArena {
 public:
  WindowArena(Arena& arena, const LayerPlan& layer, std::size_t element)
      : take_(arena, layer.sizes, element),
        layer_(layer),
        reads_blocks_(layer.pulls() && layer.plan.blocks.any_reachable()) {}

  KeyValue blocks(bool read) {
    const std::vector<std::int64_t>& rows = layer_.plan.layout.rows;
    return take_.keys_values(read && reads_blocks_ ? *std::max_element(rows.begin(), rows.end()) : 0);
  }
  void* pool() {
    return take_.rows(reads_blocks_ ? layer_.plan.blocks.max_pool_slots() : 0, layer_.sizes.slot_elements);
  }
  void* tokens(std::int64_t count) { return take_.tokens(layer_.pulls() ? count : 0); }

 private:
  RowArena take_;
  const LayerPlan& layer_;
  bool reads_blocks_;
};

std::uint32_t* take_needs(Arena& arena, const LayerPlan& layer) {
  return arena.take<std::uint32_t>(layer.pulls() ? layer.need_words() : 0);
}

}  // namespace

ForwardWindow::ForwardWindow(Arena& arena, const LayerPlan& layer) {
  WindowArena take(arena, layer, layer.sizes.element);
  blocks = take.blocks(true);
  summary_halo = take.tokens(layer.plan.summary_halo.max_sent_rows);
  window_halo = take.tokens(layer.plan.window_halo.max_sent_rows);
  gathered = take.tokens(layer.plan.layout.summaries);
}

BackwardWindow::BackwardWindow(Arena& arena, const LayerPlan& layer) {
  WindowArena inputs(arena, layer, layer.sizes.element), sums(arena, layer, layer.sizes.accumulated);
  blocks = inputs.blocks(!layer.sizes.saves_blocks);
  needs = take_needs(arena, layer);
  for (void*& pool : dpools) pool = sums.pool();
  summary_halo = sums.tokens(layer.plan.summary_halo.max_received_rows);
  window_halo = sums.tokens(layer.plan.window_halo.max_received_rows);
  summaries = sums.tokens(layer.plan.layout.summaries);
}

SavedBuffers::SavedBuffers(Arena& arena, const LayerPlan& layer) {
  const LayerSizes& sizes = layer.sizes;
  RowArena take(arena, sizes, sizes.element);
  summaries = take.keys_values(layer.plan.layout.summaries);
  summary_halo = take.keys_values(layer.plan.summary_halo.rows);
  window_halo = take.keys_values(layer.plan.window_halo.rows);
  if (sizes.saves_branches) branches = forward_branches(arena, sizes);
  if (sizes.saves_blocks) blocks = take.rows(layer.plan.blocks.pool_slots() * sizes.kv_heads, sizes.slot_elements);
  selected = static_cast<std::int32_t*>(arena.take(layer.selected_bytes()));
  needs = take_needs(arena, layer);
}

ExchangeBuffers::ExchangeBuffers(Arena& arena, const LayerPlan& layer, Blocks blocks) {
  const LayerSizes& sizes = layer.sizes;
  const planning::BlockPlanner& planner = layer.plan.blocks;
  RowArena take(arena, sizes, sizes.element);
  const std::int64_t send_slots = layer.pulls() ? 0 : planner.send_slots();
  send = take.rows(blocks == Blocks::brought_in ? send_slots : 0, sizes.slot_elements);
  for (void*& pool : pools) pool = take.rows(sizes.saves_blocks ? 0 : planner.pool_slots(), sizes.slot_elements);
  table = arena.take<BlockLocation>(layer.pulls() ? 0 : layer.plan.layout.blocks * sizes.kv_heads);
  packed = arena.take<BlockSlot>(send_slots * sizes.kv_heads);
}

ForwardBuffers::ForwardBuffers(Arena& arena, const LayerPlan& layer, const ForwardWindow& window)
    : exchange(arena, layer, Blocks::brought_in) {
  const LayerSizes& sizes = layer.sizes;
  const planning::Plan& plan = layer.plan;
  if (!sizes.saves_branches) branches = forward_branches(arena, sizes);
  RowArena take(arena, sizes, sizes.element);
  if (layer.pulls()) {
    summary_halo = {window.summary_halo, take.tokens(plan.summary_halo.received_rows)};
    window_halo = {window.window_halo, take.tokens(plan.window_halo.received_rows)};
    gathered = window.gathered;
  } else {
    summary_halo = take.halo(plan.summary_halo.sent_rows, plan.summary_halo.received_rows);
    window_halo = take.halo(plan.window_halo.sent_rows, plan.window_halo.received_rows);
    gathered = take.tokens(layer.alone() ? 0 : plan.layout.summaries);
  }
  needs = arena.take<std::uint32_t>(layer.pulls() ? 0 : layer.need_words() * layer.ranks());
  scratch = arena.take(layer.scratch_bytes);
  side_scratch = arena.take(layer.scratch_bytes);
}

BackwardBuffers::BackwardBuffers(Arena& arena, const LayerPlan& layer, const BranchBuffers& saved,
                                 const BackwardWindow& window)
    : exchange(arena, layer, layer.sizes.saves_blocks ? Blocks::in_place : Blocks::brought_in), branches(saved) {
  const LayerSizes& sizes = layer.sizes;
  const planning::Plan& plan = layer.plan;
  if (!sizes.saves_branches) branches = {arena, sizes, BranchBuffers::Selected::stored};
  RowArena take(arena, sizes, sizes.accumulated);
  weights = take.rows(3 * sizes.rows, sizes.q_heads);
  deltas = take.rows(3 * sizes.rows, sizes.q_heads);

  // Sums of gradients that the caller wants in another type; where the branches' outputs were, as far as those go.
  const std::int64_t converted_rows = layer.gradient_dtype != layer.accumulate ? sizes.rows : 0;
  dgate = take.rows(converted_rows, sizes.q_heads * 3);
  Arena outputs(branches.out[cmp]);
  const std::size_t room = sizes.reuses_branches ? BranchBuffers::output_bytes(sizes) : 0;
  const auto sum = [&](std::int64_t width) {
    const std::size_t bytes = LayerSizes::bytes(converted_rows, width, sizes.accumulated);
    return outputs.used() + bytes <= room ? outputs.take(bytes) : arena.take(bytes);
  };
  dq = sum(sizes.q_heads * layer.config.head_dim_qk);
  dq_cmp = layer.options.compressed_query ? sum(sizes.q_heads * layer.config.head_dim_qk) : dq;
  for (void*& gradient : dk) gradient = sum(sizes.k_width);
  for (void*& gradient : dv) gradient = sum(sizes.v_width);

  dpools = window.dpools;
  if (!layer.pulls())
    for (void*& pool : dpools) pool = take.rows(plan.blocks.pool_slots(), sizes.slot_elements);
  for (void*& returned : returned_blocks)
    returned = take.rows(layer.pulls() ? 0 : plan.blocks.send_slots(), sizes.slot_elements);

  dsummaries = take.keys_values(plan.layout.summaries);
  summaries_send = layer.pulls() ? window.summaries : take.tokens(layer.alone() ? 0 : plan.layout.summaries);
  summaries_receive = take.tokens((layer.ranks() - 1) * layer.own_summaries());

  // Gradients go the way back: what the forward received is sent.
  dsummary_halo = take.keys_values(plan.summary_halo.rows);
  dwindow_halo = take.keys_values(plan.window_halo.rows);
  if (layer.pulls()) {
    summary_halo = {window.summary_halo, take.tokens(plan.summary_halo.sent_rows)};
    window_halo = {window.window_halo, take.tokens(plan.window_halo.sent_rows)};
  } else {
    summary_halo = take.halo(plan.summary_halo.received_rows, plan.summary_halo.sent_rows);
    window_halo = take.halo(plan.window_halo.received_rows, plan.window_halo.sent_rows);
  }

  const bool converts_parameters = layer.parameter_gradient_dtype != layer.accumulate;
  parameter_sums = arena.take(converts_parameters ? LayerSizes::bytes(layer.parameter_elements, 1, sizes.accumulated) +
                                                        max_parameters * Arena::alignment
                                                  : 0);
  parameters = take.rows(layer.sums_parameters()
                             ? layer.parameter_elements + comm::all_reduce_work(layer.parameter_elements, layer.ranks())
                             : 0,
                         1);
  scratch = arena.take(layer.scratch_bytes);
}

}  // namespace cpnsa
