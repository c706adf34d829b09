#include "src/layer/layer_plan.hpp"

#include "cpnsa/schema.hpp"
#include "src/layer/buffers.hpp"
#include "src/layer/parameters.hpp"

namespace cpnsa {

LayerSizes::LayerSizes(const Config& config, const planning::Plan& plan, const AttentionOptions& options,
                       const DeviceFacts& facts)
    : element(size_of(options.dtype)),
      accumulated(size_of(accumulate_dtype(options.dtype))),
      rows(plan.rows),
      q_heads(config.num_q_heads),
      kv_heads(config.num_kv_heads),
      k_width(config.num_kv_heads * config.head_dim_qk),
      v_width(config.num_kv_heads * config.head_dim_v),
      out_width(config.num_q_heads * config.head_dim_v),
      slot_elements(config.select_block * (config.head_dim_qk + config.head_dim_v)),
      saves_blocks(options.backward && !options.refetch_blocks),
      saves_branches(!options.backward || !options.recompute_branches),
      reuses_branches(options.backward && (options.reuse_saved || !saves_branches)),
      combines_selected(facts.combines_selected && config.has_branch(1) && !options.sinks),
      forward_stores_o_selected(!combines_selected || (options.backward && saves_branches)) {}

LayerPlan::LayerPlan(const Config& config_, const AttentionOptions& options_, const planning::Plan& plan_,
                     const DeviceFacts& facts)
    : config(config_),
      options(options_),
      plan(plan_),
      accumulate(accumulate_dtype(options.dtype)),
      gradient_dtype(options.gradient_dtype.value_or(options.dtype)),
      parameter_gradient_dtype(options.parameter_gradient_dtype.value_or(accumulate)),
      sizes(config, plan, options, facts),
      scratch_bytes(facts.scratch_bytes),
      parameter_elements(count_parameters(config) +
                         (options.sinks ? static_cast<std::int64_t>(schema::num_sinks) * config.num_q_heads : 0)) {
  // The constructors that lay the buffers out also say, over an arena of no memory, how large they are.
  Arena saved, forward, backward;
  const ForwardWindow forward_window(forward, *this);
  SavedBuffers(options.backward ? saved : forward, *this);
  ForwardBuffers(forward, *this, forward_window);
  if (options.backward) {
    const BackwardWindow backward_window(backward, *this);
    BackwardBuffers(backward, *this, {}, backward_window);
  }
  saved_bytes = saved.used();
  forward_bytes = forward.used();
  backward_bytes = backward.used();
}

std::int64_t LayerPlan::need_words() const {
  return planning::NeedMatrix::words_of(plan.layout.blocks, config.num_kv_heads);
}

std::size_t LayerPlan::list_bytes() const {
  return to_size(plan.layout.blocks * config.num_kv_heads) * sizeof(BlockLocation) +
         to_size(plan.blocks.send_slots() * config.num_kv_heads) * sizeof(BlockSlot);
}

std::size_t LayerPlan::selected_bytes() const {
  return to_size(plan.rows * config.num_kv_heads * config.select_count) * sizeof(std::int32_t);
}

ProblemSize problem_size(const Config& config, const AttentionOptions& options, const planning::Plan& plan) {
  return {&config,
          options.dtype,
          plan.rows,
          at(plan.layout.own_summaries, plan.rank),
          plan.layout.summaries,
          plan.layout.blocks,
          options.backward};
}

}  // namespace cpnsa
