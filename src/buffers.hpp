#pragma once

#include <array>
#include <cstdint>

#include "cpnsa/attention.hpp"
#include "src/arena.hpp"
#include "src/plan.hpp"

namespace cpnsa {

/// Sizes that every buffer below is laid out from.
struct LayerSizes {
  LayerSizes(const Config& config, const planning::Plan& plan, const AttentionOptions& options, bool combines_selected)
      : element(size_of(options.dtype)),
        accumulated(size_of(accumulate_dtype(options.dtype))),
        rows(plan.rows),
        q_heads(config.num_q_heads),
        kv_heads(config.num_kv_heads),
        k_width(config.num_kv_heads * config.head_dim_qk),
        v_width(config.num_kv_heads * config.head_dim_v),
        out_width(config.num_q_heads * config.head_dim_v),
        slot_elements(config.select_block * (config.head_dim_qk + config.head_dim_v)),
        keeps_blocks(options.backward && !options.refetch_blocks),
        keeps_branches(!options.backward || !options.recompute_branches),
        reuses_branches(options.backward && (options.reuse_saved || !keeps_branches)),
        combines_selected(combines_selected),
        forward_keeps_selected(!combines_selected || (options.backward && keeps_branches)) {}

  std::size_t element;      ///< bytes of one element of the layer's type
  std::size_t accumulated;  ///< bytes of one element of the accumulating type
  std::int64_t rows;
  std::int64_t q_heads;
  std::int64_t kv_heads;
  std::int64_t k_width;         ///< G d_qk, elements of a token's keys
  std::int64_t v_width;         ///< G d_v
  std::int64_t out_width;       ///< H d_v
  std::int64_t slot_elements;   ///< of one pool slot
  bool keeps_blocks;            ///< whether what the forward fetched is kept for the backward
  bool keeps_branches;          ///< whether the branches' outputs are
  bool reuses_branches;         ///< whether the backward sums gradients where they were
  bool combines_selected;       ///< whether the selected branch's stage combines the branches
  bool forward_keeps_selected;  ///< whether anything but that stage reads the forward's o_slc

  std::int64_t token_width() const { return k_width + v_width; }  ///< a token on the wire: keys, then values
  static std::size_t bytes(std::int64_t rows, std::int64_t width, std::size_t size) {
    return static_cast<std::size_t>(rows) * static_cast<std::size_t>(width) * size;
  }
};

/// What the three branches computed.
struct BranchBuffers {
  BranchBuffers() = default;
  BranchBuffers(Arena& arena, const LayerSizes& sizes, bool with_selected) {
    const auto output = [&] { return arena.take(LayerSizes::bytes(sizes.rows, sizes.out_width, sizes.element)); };
    o_cmp = output();
    o_win = output();
    if (with_selected) o_slc = output();
    for (auto* lse : {&lse_cmp, &lse_slc, &lse_win})
      *lse = arena.take(LayerSizes::bytes(sizes.rows, sizes.q_heads, sizes.accumulated));
  }

  /// What `o_cmp` and the two after it take together.
  static std::size_t output_bytes(const LayerSizes& sizes) {
    Arena counted;
    for (int branch = 0; branch < 3; ++branch)
      counted.take(LayerSizes::bytes(sizes.rows, sizes.out_width, sizes.element));
    return counted.used();
  }

  void *o_cmp = nullptr, *o_slc = nullptr, *o_win = nullptr;        ///< [rows, H, d_v]; o_slc where somebody reads it
  void *lse_cmp = nullptr, *lse_slc = nullptr, *lse_win = nullptr;  ///< acc [rows, H]
};

/// What the backward needs of the forward. Lies in SavedForward::memory, or in the workspace when no backward follows.
struct SavedBuffers {
  SavedBuffers(Arena& arena, const Config& config, const planning::Plan& plan, const LayerSizes& sizes) {
    const auto take = [&](std::int64_t rows, std::int64_t width, std::size_t size) {
      return arena.take(LayerSizes::bytes(rows, width, size));
    };
    summary_keys = take(plan.layout.summaries, sizes.k_width, sizes.element);
    summary_values = take(plan.layout.summaries, sizes.v_width, sizes.element);
    summary_halo_k = take(plan.summary_halo.rows, sizes.k_width, sizes.element);
    summary_halo_v = take(plan.summary_halo.rows, sizes.v_width, sizes.element);
    window_halo_k = take(plan.window_halo.rows, sizes.k_width, sizes.element);
    window_halo_v = take(plan.window_halo.rows, sizes.v_width, sizes.element);
    if (sizes.keeps_branches) branches = {arena, sizes, sizes.forward_keeps_selected};
    if (sizes.keeps_blocks)
      blocks = take(plan.blocks.pool_slots() * sizes.kv_heads, sizes.slot_elements, sizes.element);
    selected = arena.take<std::int32_t>(sizes.rows * sizes.kv_heads * config.select_count);
  }

  void* summary_keys;      ///< [C, G, d_qk]
  void* summary_values;    ///< [C, G, d_v]
  void* summary_halo_k;    ///< [summary halo rows, G, d_qk]
  void* summary_halo_v;    ///< [summary halo rows, G, d_v]
  void* window_halo_k;     ///< [window halo rows, G, d_qk]
  void* window_halo_v;     ///< [window halo rows, G, d_v]
  BranchBuffers branches;  ///< if kept
  void* blocks = nullptr;  ///< if kept: the pools of all rounds, one after another
  std::int32_t* selected;  ///< [rows, G, n]
};

/// The selected branch's exchange, of the forward or of a backward that `fetches`.
struct ExchangeBuffers {
  ExchangeBuffers(Arena& arena, const planning::Plan& plan, const LayerSizes& sizes, bool fetches) {
    const auto slots = [&](std::int64_t count) {
      return arena.take(LayerSizes::bytes(count, sizes.slot_elements, sizes.element));
    };
    send = slots(fetches ? plan.blocks.send_slots() : 0);
    for (void*& pool : pools) pool = slots(sizes.keeps_blocks ? 0 : plan.blocks.pool_slots());
    table = arena.take<BlockLocation>(plan.layout.blocks * sizes.kv_heads);
    packed = arena.take<BlockSlot>(plan.blocks.send_slots() * sizes.kv_heads);
  }

  void* send;
  std::array<void*, 2> pools;  ///< rounds alternate, so that one fills while the other is read; none if kept
  BlockLocation* table;        ///< [B, G]
  BlockSlot* packed;           ///< the rounds' lists, one after another
};

struct ForwardBuffers {
  ForwardBuffers(Arena& arena, const planning::Plan& plan, const LayerSizes& sizes, std::size_t scratch_bytes)
      : exchange(arena, plan, sizes, true) {
    if (!sizes.keeps_branches) branches = {arena, sizes, sizes.forward_keeps_selected};
    const auto tokens = [&](std::int64_t rows) {
      return arena.take(LayerSizes::bytes(rows, sizes.token_width(), sizes.element));
    };
    summary_halo_send = tokens(plan.summary_halo.sent_rows);
    summary_halo_receive = tokens(plan.summary_halo.received_rows);
    window_halo_send = tokens(plan.window_halo.sent_rows);
    window_halo_receive = tokens(plan.window_halo.received_rows);
    gathered = tokens(plan.layout.ranks() > 1 ? plan.layout.summaries : 0);
    demand_words = planning::DemandMatrix::words_of(plan.layout.blocks, sizes.kv_heads);
    demand = arena.take<std::uint32_t>(demand_words * plan.layout.ranks());
    scratch = arena.take(scratch_bytes);
    scratch_beside = arena.take(scratch_bytes);
  }

  ExchangeBuffers exchange;
  BranchBuffers branches;                                                                   ///< if not kept
  void *summary_halo_send, *summary_halo_receive, *window_halo_send, *window_halo_receive;  ///< tokens on the wire
  void* gathered;                                                                           ///< summaries, rank order
  std::int64_t demand_words;                                                                ///< of one rank
  std::uint32_t* demand;                                                                    ///< [P, demand_words]
  void* scratch;
  void* scratch_beside;  ///< of stages that run beside others
};

struct BackwardBuffers {
  BackwardBuffers(Arena& arena, const BranchBuffers& saved, const planning::Plan& plan, const LayerSizes& sizes,
                  const Config& config, bool convert_gradients, std::int64_t converted_parameter_elements,
                  std::int64_t summed_parameter_elements, std::size_t scratch_bytes)
      : exchange(arena, plan, sizes, !sizes.keeps_blocks), branches(saved) {
    if (!sizes.keeps_branches) branches = {arena, sizes, true};
    const auto take = [&](std::int64_t rows, std::int64_t width) {
      return arena.take(LayerSizes::bytes(rows, width, sizes.accumulated));
    };
    const int ranks = plan.layout.ranks();
    weights = take(3 * sizes.rows, sizes.q_heads);
    deltas = take(3 * sizes.rows, sizes.q_heads);
    const std::int64_t converted = convert_gradients ? sizes.rows : 0;
    dgate = take(converted, sizes.q_heads * 3);
    Arena outputs(branches.o_cmp);
    const std::size_t room = sizes.reuses_branches ? BranchBuffers::output_bytes(sizes) : 0;
    const auto sum = [&](std::int64_t width) {
      const std::size_t bytes = LayerSizes::bytes(converted, width, sizes.accumulated);
      return outputs.used() + bytes <= room ? outputs.take(bytes) : arena.take(bytes);
    };
    dq = sum(sizes.q_heads * config.head_dim_qk);
    for (void*& gradient : dk) gradient = sum(sizes.k_width);
    for (void*& gradient : dv) gradient = sum(sizes.v_width);

    for (void*& pool : dpools) pool = take(plan.blocks.pool_slots(), sizes.slot_elements);
    for (void*& returned : returned_blocks) returned = take(plan.blocks.send_slots(), sizes.slot_elements);

    dsummary_keys = take(plan.layout.summaries, sizes.k_width);
    dsummary_values = take(plan.layout.summaries, sizes.v_width);
    const std::int64_t own_summaries = plan.layout.own_summaries[static_cast<std::size_t>(plan.rank)];
    summaries_send = take(ranks > 1 ? plan.layout.summaries : 0, sizes.token_width());
    summaries_receive = take((ranks - 1) * own_summaries, sizes.token_width());

    dsummary_halo_k = take(plan.summary_halo.rows, sizes.k_width);
    dsummary_halo_v = take(plan.summary_halo.rows, sizes.v_width);
    dwindow_halo_k = take(plan.window_halo.rows, sizes.k_width);
    dwindow_halo_v = take(plan.window_halo.rows, sizes.v_width);
    summary_halo_send = take(plan.summary_halo.received_rows, sizes.token_width());
    summary_halo_receive = take(plan.summary_halo.sent_rows, sizes.token_width());
    window_halo_send = take(plan.window_halo.received_rows, sizes.token_width());
    window_halo_receive = take(plan.window_halo.sent_rows, sizes.token_width());

    const std::size_t parameter_bytes = LayerSizes::bytes(converted_parameter_elements, 1, sizes.accumulated);
    parameter_sums = arena.take(parameter_bytes + (parameter_bytes > 0 ? most_parameters * Arena::alignment : 0));
    parameters = take(2 * summed_parameter_elements + (summed_parameter_elements > 0 ? 2 * ranks : 0), 1);
    scratch = arena.take(scratch_bytes);
  }

  ExchangeBuffers exchange;
  BranchBuffers branches;   ///< as saved, or to be computed again
  void* weights;            ///< acc [3, rows, H]
  void* deltas;             ///< acc [3, rows, H]
  void* dgate;              ///< acc, where the caller wants another type
  void* dq;                 ///< acc, likewise; this and the next where the branches' outputs were, if those are reused
  std::array<void*, 3> dk;  ///< acc [rows, G, d_qk] by branch
  std::array<void*, 3> dv;
  std::array<void*, 2> dpools;               ///< acc [pool slots], gradients of the pools
  std::array<void*, 2> returned_blocks;      ///< acc [send slots], gradients of what this rank sent
  void *dsummary_keys, *dsummary_values;     ///< acc [C, G, d]
  void *summaries_send, *summaries_receive;  ///< acc tokens on the wire: rank order; [P - 1, own summaries]
  void *dsummary_halo_k, *dsummary_halo_v, *dwindow_halo_k, *dwindow_halo_v;
  void *summary_halo_send, *summary_halo_receive, *window_halo_send, *window_halo_receive;
  static constexpr std::size_t most_parameters = 12;
  void* parameter_sums;  ///< acc, the compressors' gradients where the caller wants another type, each aligned
  void* parameters;      ///< acc, the compressors' gradients twice: gathered, and as received
  void* scratch;
};

}  // namespace cpnsa
