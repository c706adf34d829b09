#include "src/layer/buffers.hpp"

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

}  // namespace

SavedBuffers::SavedBuffers(Arena& arena, const LayerPlan& layer) {
  const LayerSizes& sizes = layer.sizes;
  RowArena take(arena, sizes, sizes.element);
  summaries = take.keys_values(layer.plan.layout.summaries);
  summary_halo = take.keys_values(layer.plan.summary_halo.rows);
  window_halo = take.keys_values(layer.plan.window_halo.rows);
  if (sizes.saves_branches) branches = forward_branches(arena, sizes);
  if (sizes.saves_blocks) blocks = take.rows(layer.plan.blocks.pool_slots() * sizes.kv_heads, sizes.slot_elements);
  selected = static_cast<std::int32_t*>(arena.take(layer.selected_bytes()));
}

ExchangeBuffers::ExchangeBuffers(Arena& arena, const LayerPlan& layer, Blocks blocks) {
  const LayerSizes& sizes = layer.sizes;
  const planning::BlockPlanner& planner = layer.plan.blocks;
  RowArena take(arena, sizes, sizes.element);
  send = take.rows(blocks == Blocks::brought_in ? planner.send_slots() : 0, sizes.slot_elements);
  for (void*& pool : pools) pool = take.rows(sizes.saves_blocks ? 0 : planner.pool_slots(), sizes.slot_elements);
  table = arena.take<BlockLocation>(layer.plan.layout.blocks * sizes.kv_heads);
  packed = arena.take<BlockSlot>(planner.send_slots() * sizes.kv_heads);
}

ForwardBuffers::ForwardBuffers(Arena& arena, const LayerPlan& layer) : exchange(arena, layer, Blocks::brought_in) {
  const LayerSizes& sizes = layer.sizes;
  const planning::Plan& plan = layer.plan;
  if (!sizes.saves_branches) branches = forward_branches(arena, sizes);
  RowArena take(arena, sizes, sizes.element);
  summary_halo = take.halo(plan.summary_halo.sent_rows, plan.summary_halo.received_rows);
  window_halo = take.halo(plan.window_halo.sent_rows, plan.window_halo.received_rows);
  gathered = take.tokens(layer.alone() ? 0 : plan.layout.summaries);
  needs = arena.take<std::uint32_t>(layer.need_words() * layer.ranks());
  scratch = arena.take(layer.scratch_bytes);
  side_scratch = arena.take(layer.scratch_bytes);
}

BackwardBuffers::BackwardBuffers(Arena& arena, const LayerPlan& layer, const BranchBuffers& saved)
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

  for (void*& pool : dpools) pool = take.rows(plan.blocks.pool_slots(), sizes.slot_elements);
  for (void*& returned : returned_blocks) returned = take.rows(plan.blocks.send_slots(), sizes.slot_elements);

  dsummaries = take.keys_values(plan.layout.summaries);
  summaries_send = take.tokens(layer.alone() ? 0 : plan.layout.summaries);
  summaries_receive = take.tokens((layer.ranks() - 1) * layer.own_summaries());

  // Gradients go the way back: what the forward received is sent.
  dsummary_halo = take.keys_values(plan.summary_halo.rows);
  dwindow_halo = take.keys_values(plan.window_halo.rows);
  summary_halo = take.halo(plan.summary_halo.received_rows, plan.summary_halo.sent_rows);
  window_halo = take.halo(plan.window_halo.received_rows, plan.window_halo.sent_rows);

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
