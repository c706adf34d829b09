// The life of a backward step. `compute` is the caller's stream, the wire's stream the library's own; see DESIGN.md for
// the picture.
//
// Every sum has one order: a branch's own contribution first, then what comes back, peers ascending; branches in the
// order window, selected, compressed.

#include "src/steps/backward.hpp"

#include <vector>

#include "comm/all_reduce.hpp"
#include "cpnsa/schema.hpp"
#include "src/layer/parameters.hpp"
#include "src/steps/branch_attention.hpp"
#include "src/steps/gradient_sums.hpp"
#include "src/wire/token_rows.hpp"

namespace cpnsa {
namespace {

class BackwardStep {
 public:
  BackwardStep(const LayerPlan& layer, const LayerLists& lists, Wire& wire, RoundResources& rounds,
               BlockRequests& requests, const planning::BlockSchedule& schedule, const BackwardArguments& given,
               Stream compute);

  BackwardResult run();

 private:
  void show_blocks();
  void recompute_branches();
  void combine();
  void zero_accumulators();
  void sinks();
  void window();
  void selected();
  void compressed();
  void reduce_summary_gradients();
  void compress();
  std::int64_t sum_parameters();
  void convert();

  void add_returned_blocks(std::size_t round);
  void add_pulled_blocks(std::size_t round);
  void send_halo_back(const HaloLists& halo_lists, const planning::RankHalo& halo, ConstKeyValue gradients,
                      HaloTokens tokens, Branch branch);
  void compress_runs(const ListView<SummaryRun>& runs, ConstKeyValue input, KeyValue gradients);
  BranchGradient gradient_of(Branch branch) const;

  /// The arguments of a branch's stage.
  template <class Arguments>
  Arguments branch_arguments(Branch branch) const {
    auto arguments = layer.arguments<Arguments>(work.scratch);
    arguments.queries = lists.queries.get();
    arguments.q = branch == cmp && in.q_cmp ? in.q_cmp.data : in.q.data;
    arguments.gradient = gradient_of(branch);
    arguments.dq = branch == cmp ? sums.q_cmp : sums.q;
    return arguments;
  }
  std::size_t sum_bytes(std::int64_t count, std::int64_t width) const {
    return LayerSizes::bytes(count, width, layer.sizes.accumulated);
  }

  const LayerPlan& layer;
  const LayerLists& lists;
  Wire& wire;
  Device& device;
  const planning::Plan& plan;
  BlockRequests& requests;
  const planning::BlockSchedule& schedule;
  const BackwardArguments& given;
  const AttentionInputs& in;
  Stream compute;

  Arena saved_arena;
  Arena work_arena;
  const SavedBuffers saved;
  const BackwardWindow shown;
  const BackwardBuffers work;
  const BranchBuffers& branches;
  const GradientSums sums;
  const TokenRows rows;
  BlockRounds rounds;
};

BackwardStep::BackwardStep(const LayerPlan& layer_, const LayerLists& lists_, Wire& wire_, RoundResources& resources,
                           BlockRequests& requests_, const planning::BlockSchedule& schedule_,
                           const BackwardArguments& given_, Stream compute_)
    : layer(layer_),
      lists(lists_),
      wire(wire_),
      device(wire.device),
      plan(layer.plan),
      requests(requests_),
      schedule(schedule_),
      given(given_),
      in(given.inputs),
      compute(compute_),
      saved_arena(given.saved_memory),
      work_arena(given.workspace),
      saved(saved_arena, layer),
      shown(work_arena, layer),
      work(work_arena, layer, saved.branches, shown),
      branches(work.branches),
      sums(layer, device, given.gradients, work),
      rows(device, layer, compute),
      rounds(wire, layer, lists, resources,
             {.schedule = schedule,
              .buffers = work.exchange,
              .saved_blocks = saved.blocks,
              .blocks = layer.sizes.saves_blocks ? Blocks::in_place : Blocks::brought_in,
              .own = {in.k.slc.data, in.v.slc.data},
              .traffic = Traffic::refetched_blocks,
              .stage = Stage::refetch_blocks,
              .window = shown.blocks,
              .needs = saved.needs},
             compute) {}

BackwardResult BackwardStep::run() {
  BackwardResult result;
  show_blocks();
  if (!layer.sizes.saves_branches) recompute_branches();
  if (layer.has_branch(slc)) rounds.bring_last();
  combine();            // while the first blocks travel
  zero_accumulators();  // after it: sums may lie where the branches' outputs were
  sinks();
  if (layer.has_branch(win)) window();
  if (layer.has_branch(slc)) selected();
  if (layer.has_branch(cmp)) {
    compressed();
    reduce_summary_gradients();
    compress();
  }
  result.parameter_bytes = sum_parameters();
  convert();
  if (layer.pulls()) wire.hand_over(compute, wire.stream());  // the last reads of other ranks' gradients
  wire.meet(Traffic::control);
  wire.hand_over(wire.stream(), compute);
  return result;
}

// Opens the window, and shows in it what the other ranks need of the selected branch.
void BackwardStep::show_blocks() {
  if (!layer.pulls()) return;
  wire.open_window(given.workspace);
  if (!plan.blocks.any_reachable()) return;
  if (!layer.sizes.saves_blocks && plan.rows > 0) {
    const std::size_t element = layer.sizes.element;
    device.copy(shown.blocks.k, in.k.slc.data, LayerSizes::bytes(plan.rows, layer.sizes.k_width, element), compute);
    device.copy(shown.blocks.v, in.v.slc.data, LayerSizes::bytes(plan.rows, layer.sizes.v_width, element), compute);
  }
  device.copy(shown.needs, saved.needs, layer.need_bytes(), compute);
  wire.hand_over(compute, wire.stream());
  wire.meet(Traffic::refetched_blocks);
  requests.copy_all(layer, wire, shown.needs);
}

// The gate's gradients need the outputs of all branches, so all rounds come in here. The last two stay in their pools,
// and the backward begins with those. The forward's stages are timed as those of the backward that they are part of.
void BackwardStep::recompute_branches() {
  const BranchAttention attend(layer, lists, device, in, saved, branches, work.scratch, compute);
  if (layer.has_branch(slc)) rounds.bring_first();
  {
    const auto timed = wire.timed(Stage::window_backward, compute);
    attend.window();
  }
  {
    const auto timed = wire.timed(Stage::compressed_backward, compute);
    if (layer.has_branch(cmp)) attend.compressed();
    attend.clear_compressed();
  }
  if (!layer.has_branch(slc)) return attend.finish_selected();
  rounds.first_to_last([&](std::size_t round, const void* pool) {
    const auto timed = wire.timed(Stage::selected_backward, compute);
    attend.selected(schedule.rounds[round], pool, rounds.table());
  });
  attend.finish_selected();
}

void BackwardStep::combine() {
  if (plan.rows == 0) return;
  const auto timed = wire.timed(Stage::combine_backward, compute);
  auto combine = layer.arguments<CombineBranchesBackward>(work.scratch);
  combine.rows = plan.rows;
  combine.gate = in.gate.data;
  combine.o_cmp = branches.out[cmp];
  combine.o_slc = branches.out[slc];
  combine.o_win = branches.out[win];
  combine.dout = given.dout.data;
  combine.dgate = sums.gate;
  combine.weights = work.weights;
  combine.deltas = work.deltas;
  device.run(combine, compute);
}

void BackwardStep::zero_accumulators() {
  sums.zero(compute);
  const auto zero = [&](KeyValue gradients, std::int64_t count) {
    if (count == 0) return;
    device.fill_zero(gradients.k, sum_bytes(count, layer.sizes.k_width), compute);
    device.fill_zero(gradients.v, sum_bytes(count, layer.sizes.v_width), compute);
  };
  zero(work.dsummaries, plan.layout.summaries);
  zero(work.dsummary_halo, plan.summary_halo.rows);
  zero(work.dwindow_halo, plan.window_halo.rows);
}

void BackwardStep::sinks() {
  const auto backward = [&](Branch branch, const TensorView& sinks, const TensorView& dsinks) {
    if (!sinks || !dsinks || plan.rows == 0) return;
    const BranchGradient gradient = gradient_of(branch);
    auto add = layer.arguments<AddSinksBackward>(work.scratch);
    add.rows = plan.rows;
    add.sinks = sinks.data;
    add.log_sum_exp = gradient.log_sum_exp;
    add.deltas = gradient.deltas;
    add.dsinks = dsinks.data;
    device.run(add, compute);
  };
  backward(slc, in.sink_slc, sums.parameters.sink_slc);
  backward(win, in.sink_win, sums.parameters.sink_win);
}

BranchGradient BackwardStep::gradient_of(Branch branch) const {
  const std::size_t offset = sum_bytes(branch * plan.rows, layer.config.num_q_heads);
  return {given.dout.data, static_cast<const std::byte*>(work.weights) + offset,
          static_cast<const std::byte*>(work.deltas) + offset, branches.log_sum_exp[branch]};
}

// Gradients of halo rows: those of own rows are added at once, the rest are sent to the rows' owners, who add them in
// rank order.
void BackwardStep::send_halo_back(const HaloLists& halo_lists, const planning::RankHalo& halo, ConstKeyValue gradients,
                                  HaloTokens tokens, Branch branch) {
  rows.add(halo_lists.halo_to_own.view(), gradients, sums.of(branch));
  rows.to_tokens(halo_lists.halo_to_received.view(), gradients, tokens.send, layer.sizes.accumulated);
  wire.hand_over(compute, wire.stream());
  {
    const auto timed = wire.timed(Stage::return_halo_gradients, wire.stream());
    wire.meet(Traffic::halo_gradients);
    wire.exchange({.traffic = Traffic::halo_gradients,
                   .sends = halo.receives,
                   .send_base = tokens.send,
                   .receives = halo.sends,
                   .receive_base = tokens.receive,
                   .item_bytes = sum_bytes(1, layer.sizes.token_width()),
                   .sources = halo.receiver_first});
  }
  wire.hand_over(wire.stream(), compute);
  for (std::size_t i = 0; i < halo.sends.size(); ++i) {
    const std::int64_t first = halo.packed_first[i];
    const std::int64_t last =
        i + 1 < halo.sends.size() ? halo.packed_first[i + 1] : static_cast<std::int64_t>(halo.packed.size());
    rows.add_tokens(halo_lists.send_to_own.view(first, last - first), tokens.receive, sums.of(branch));
  }
}

void BackwardStep::window() {
  if (plan.rows > 0) {
    const auto timed = wire.timed(Stage::window_backward, compute);
    auto window = branch_arguments<WindowAttentionBackward>(win);
    window.k = in.k.win.data;
    window.v = in.v.win.data;
    window.halo_k = saved.window_halo.k;
    window.halo_v = saved.window_halo.v;
    window.dk = sums.k[win];
    window.dv = sums.v[win];
    window.dhalo_k = work.dwindow_halo.k;
    window.dhalo_v = work.dwindow_halo.v;
    device.run(window, compute);
  }
  send_halo_back(lists.window_halo, plan.window_halo, work.dwindow_halo, work.window_halo, win);
}

void BackwardStep::add_returned_blocks(std::size_t round) {
  rounds.wait_for_returned(round);
  const ListView<BlockSlot> packed = rounds.packed(round);
  for (const planning::PeerRange& peer : schedule.rounds[round].sends) {
    auto add = layer.arguments<AddBlocks>(work.scratch);
    add.pool = work.returned_blocks[round % 2];
    add.dk = sums.k[slc];
    add.dv = sums.v[slc];
    add.blocks = {packed.host + peer.first, packed.device + peer.first, peer.count};
    device.run(add, compute);
  }
}

// The gradients that the other ranks left in their windows for blocks of this rank. They are read before the ranks meet
// for the next round, after which their owners overwrite them.
void BackwardStep::add_pulled_blocks(std::size_t round) {
  rounds.wait_for_returned(round);
  auto add = layer.arguments<AddPulledBlocks>(work.scratch);
  add.blocks = lists.block_readers.view();
  if (add.blocks.count == 0) return;
  add.needs = wire.in_windows(shown.needs);
  add.pool = wire.in_windows(work.dpools[round % 2]);
  add.group = schedule.rounds[round].group_begin;
  add.dk = sums.k[slc];
  add.dv = sums.v[slc];
  wire.read(compute, [&] { device.run(add, compute); });
}

void BackwardStep::selected() {
  rounds.last_to_first([&](std::size_t round, const void* pool) {
    const planning::ExchangeRound& now = schedule.rounds[round];
    void* const dpool = work.dpools[round % 2];
    if (now.received > 0) device.fill_zero(dpool, sum_bytes(now.received, layer.sizes.slot_elements), compute);
    if (plan.rows > 0) {
      const auto timed = wire.timed(Stage::selected_backward, compute);
      auto selected = branch_arguments<SelectedAttentionBackward>(slc);
      selected.k = in.k.slc.data;
      selected.v = in.v.slc.data;
      selected.pool = pool;
      selected.pool_slots = now.received;
      selected.table = rounds.table();
      selected.selected = saved.selected;
      selected.group_begin = now.group_begin;
      selected.group_end = now.group_end;
      selected.dk = sums.k[slc];
      selected.dv = sums.v[slc];
      selected.dpool = dpool;
      device.run(selected, compute);
    }
    rounds.send_back(round, dpool, work.returned_blocks[round % 2]);
    if (layer.pulls())
      add_pulled_blocks(round);
    else if (round + 1 < rounds.count())
      add_returned_blocks(round + 1);  // while this round's gradients travel
  });
  if (!layer.pulls()) add_returned_blocks(0);
}

void BackwardStep::compressed() {
  if (plan.rows == 0) return;
  const auto timed = wire.timed(Stage::compressed_backward, compute);
  auto compressed = branch_arguments<CompressedAttentionBackward>(cmp);
  compressed.keys = saved.summaries.k;
  compressed.values = saved.summaries.v;
  compressed.dkeys = work.dsummaries.k;
  compressed.dvalues = work.dsummaries.v;
  device.run(compressed, compute);
  if (in.summary_rotation.cos)
    device.run(summary_rotation(layer, lists, in.summary_rotation, work.dsummaries.k, layer.accumulate, true), compute);
}

void BackwardStep::reduce_summary_gradients() {
  if (layer.alone()) return;
  rows.to_tokens(lists.all_to_gathered.view(), work.dsummaries, work.summaries_send, layer.sizes.accumulated);
  const std::int64_t own = layer.own_summaries();
  std::vector<planning::PeerRange> sends, receives;
  const std::vector<std::int64_t> sources(to_size(layer.ranks()), at(plan.gathered_first, plan.rank));
  for (int peer = 0; peer < layer.ranks(); ++peer) {
    if (peer == plan.rank) continue;
    const std::int64_t theirs = at(plan.layout.own_summaries, peer);
    if (theirs > 0) sends.push_back({peer, at(plan.gathered_first, peer), theirs});
    if (own > 0) receives.push_back({peer, static_cast<std::int64_t>(receives.size()) * own, own});
  }
  wire.hand_over(compute, wire.stream());
  {
    const auto timed = wire.timed(Stage::reduce_summary_gradients, wire.stream());
    wire.meet(Traffic::summary_gradients);
    wire.exchange({.traffic = Traffic::summary_gradients,
                   .sends = sends,
                   .send_base = work.summaries_send,
                   .receives = receives,
                   .receive_base = work.summaries_receive,
                   .item_bytes = sum_bytes(1, layer.sizes.token_width()),
                   .sources = sources});
  }
  wire.hand_over(wire.stream(), compute);
  for (const planning::PeerRange& peer : receives) {
    const auto* received =
        static_cast<const std::byte*>(work.summaries_receive) + sum_bytes(peer.first, layer.sizes.token_width());
    rows.add_tokens(lists.own_to_all.view(), received, work.dsummaries);
  }
}

void BackwardStep::compress_runs(const ListView<SummaryRun>& runs, ConstKeyValue input, KeyValue gradients) {
  if (runs.count == 0) return;
  const auto one = [&](const void* tokens, const CompressorTensors& parameters, const CompressorTensors& dparameters,
                       std::int64_t dim, std::int64_t hidden, const void* dsummaries, void* dtokens) {
    auto arguments = layer.arguments<CompressBackward>(work.scratch);
    arguments.dim = dim;
    arguments.hidden = hidden;
    arguments.input = tokens;
    arguments.parameters = pointers_of(parameters);
    arguments.dsummaries = dsummaries;
    arguments.dinput = dtokens;
    schema::for_each_compressor_member([](auto, void*& to, const TensorView& from) { to = from.data; },
                                       arguments.dparameters, dparameters);
    arguments.runs = runs;
    device.run(arguments, compute);
  };
  const Config& config = layer.config;
  one(input.k, in.compress_k, sums.parameters.compress_k, config.head_dim_qk, config.compress_hidden_k,
      work.dsummaries.k, gradients.k);
  one(input.v, in.compress_v, sums.parameters.compress_v, config.head_dim_v, config.compress_hidden_v,
      work.dsummaries.v, gradients.v);
}

void BackwardStep::compress() {
  {
    const auto timed = wire.timed(Stage::compress_backward, compute);
    compress_runs(lists.own_runs.view(), {in.k.cmp.data, in.v.cmp.data}, sums.of(cmp));
    compress_runs(lists.halo_runs.view(), saved.summary_halo, work.dsummary_halo);
  }
  send_halo_back(lists.summary_halo, plan.summary_halo, work.dsummary_halo, work.summary_halo, cmp);
}

// If the options ask for it: each parameter gradient becomes the ranks' sum. Returns the bytes received.
std::int64_t BackwardStep::sum_parameters() {
  if (!layer.sums_parameters()) return 0;
  const auto timed = wire.timed(Stage::finish_gradients, compute);
  auto* const all = static_cast<std::byte*>(work.parameters);
  std::int64_t count = 0;
  for_each_parameter(sums.parameters, [&](const TensorView& view) {
    device.copy(all + sum_bytes(count, 1), view.data, view.bytes(), compute);
    count += view.elements();
  });
  wire.hand_over(compute, wire.stream());
  const std::int64_t received = comm::all_reduce(wire.communicator, device,
                                                 {.data = all,
                                                  .count = count,
                                                  .dtype = layer.accumulate,
                                                  .work = all + sum_bytes(count, 1),
                                                  .one_row = lists.one_row.view()},
                                                 wire.stream());
  wire.count_received(Traffic::parameter_gradients, received);
  wire.hand_over(wire.stream(), compute);
  count = 0;
  for_each_parameter(sums.parameters, [&](const TensorView& view) {
    device.copy(view.data, all + sum_bytes(count, 1), view.bytes(), compute);
    count += view.elements();
  });
  return received;
}

void BackwardStep::convert() {
  const auto timed = wire.timed(Stage::finish_gradients, compute);
  sums.convert(compute);
}

}  // namespace

BackwardResult run_backward(const LayerPlan& layer, const LayerLists& lists, Wire& wire, RoundResources& rounds,
                            BlockRequests& requests, const planning::BlockSchedule& schedule,
                            const BackwardArguments& given, Stream compute) {
  return BackwardStep(layer, lists, wire, rounds, requests, schedule, given, compute).run();
}

}  // namespace cpnsa
