// The life of a forward step. `compute` is the caller's stream, the wire's stream the library's own; see DESIGN.md for
// the picture.

#include "src/steps/forward.hpp"

#include <array>
#include <vector>

#include "src/layer/parameters.hpp"
#include "src/steps/branch_attention.hpp"
#include "src/wire/token_rows.hpp"

namespace cpnsa {
namespace {

class ForwardStep {
 public:
  ForwardStep(const LayerPlan& layer, const LayerLists& lists, Wire& wire, RoundResources& rounds,
              BlockRequests& requests, const ForwardArguments& given, Stream compute);

  ForwardResult run();

 private:
  void show_blocks();
  void exchange_halos();
  void compress();
  void gather_summaries();
  void rotate_summaries();
  void write_log_sum_exps();
  void window_attention();
  void compressed_attention();
  void select_blocks();
  std::int64_t request_blocks();
  void selected_attention(const planning::BlockSchedule& schedule);
  void combine();

  Phase halo_phase(const planning::RankHalo& halo, const HaloTokens& tokens) const;
  void fill_halo(const HaloLists& halo_lists, const void* received, ConstKeyValue own, KeyValue halo);
  void compress_runs(const ListView<SummaryRun>& runs, ConstKeyValue input);
  CombineBranches combination() const;

  const LayerPlan& layer;
  const LayerLists& lists;
  Wire& wire;
  RoundResources& round_resources;
  BlockRequests& requests;
  Device& device;
  const planning::Plan& plan;
  const ForwardArguments& given;
  const AttentionInputs& in;
  Stream compute;

  Arena saved_arena;
  Arena work_arena;
  const ForwardWindow window;
  const SavedBuffers saved;
  const ForwardBuffers work;
  const BranchBuffers& branches;
  const BranchAttention attend;
  const TokenRows rows;
  const std::size_t element;      // bytes
  const std::size_t token_bytes;  // of a token on the wire
};

ForwardStep::ForwardStep(const LayerPlan& layer_, const LayerLists& lists_, Wire& wire_, RoundResources& rounds_,
                         BlockRequests& requests_, const ForwardArguments& given_, Stream compute_)
    : layer(layer_),
      lists(lists_),
      wire(wire_),
      round_resources(rounds_),
      requests(requests_),
      device(wire.device),
      plan(layer.plan),
      given(given_),
      in(given.inputs),
      compute(compute_),
      saved_arena(given.saved_memory()),
      work_arena(given.workspace),
      window(work_arena, layer),
      saved(given.saved ? saved_arena : work_arena, layer),
      work(work_arena, layer, window),
      branches(layer.sizes.saves_branches ? saved.branches : work.branches),
      attend(layer, lists, device, in, saved, branches, work.scratch, compute),
      rows(device, layer, compute),
      element(layer.sizes.element),
      token_bytes(LayerSizes::bytes(1, layer.sizes.token_width(), element)) {}

ForwardResult ForwardStep::run() {
  ForwardResult result;
  show_blocks();
  exchange_halos();
  compress();
  gather_summaries();
  if (!layer.reads_needs()) window_attention();  // while the summaries travel
  compressed_attention();
  select_blocks();
  result.request_bytes = request_blocks();
  if (layer.reads_needs()) window_attention();  // while the needs travel, and the host plans what follows from them
  result.blocks = requests.read(layer, lists, wire);
  selected_attention(*result.blocks.schedule);
  combine();
  write_log_sum_exps();
  if (given.selected && plan.rows > 0) device.copy(given.selected, saved.selected, layer.selected_bytes(), compute);
  // The caller may free the workspace once `compute` has drained.
  wire.meet(Traffic::control);
  if (!layer.alone()) wire.hand_over(wire.stream(), compute);
  return result;
}

// Opens the window. The ranks meet before they exchange halos; from then on the blocks in it may be read.
void ForwardStep::show_blocks() {
  if (!layer.pulls()) return;
  wire.open_window(given.workspace);
  if (!plan.blocks.any_reachable() || plan.rows == 0) return;
  device.copy(window.blocks.k, in.k.slc.data, LayerSizes::bytes(plan.rows, layer.sizes.k_width, element), compute);
  device.copy(window.blocks.v, in.v.slc.data, LayerSizes::bytes(plan.rows, layer.sizes.v_width, element), compute);
}

void ForwardStep::exchange_halos() {
  if (layer.alone()) return;
  rows.to_tokens(lists.summary_halo.own_to_send.view(), {in.k.cmp.data, in.v.cmp.data}, work.summary_halo.send,
                 element);
  rows.to_tokens(lists.window_halo.own_to_send.view(), {in.k.win.data, in.v.win.data}, work.window_halo.send, element);
  wire.hand_over(compute, wire.stream());
  const auto timed = wire.timed(Stage::exchange_halo, wire.stream());
  wire.meet(Traffic::halo);
  wire.exchange(halo_phase(plan.summary_halo, work.summary_halo));
  device.record(wire.summary_halo_arrived.get(), wire.stream());
  wire.exchange(halo_phase(plan.window_halo, work.window_halo));
  device.record(wire.window_halo_arrived.get(), wire.stream());
}

Phase ForwardStep::halo_phase(const planning::RankHalo& halo, const HaloTokens& tokens) const {
  return {.traffic = Traffic::halo,
          .sends = halo.sends,
          .send_base = tokens.send,
          .receives = halo.receives,
          .receive_base = tokens.receive,
          .item_bytes = token_bytes,
          .sources = halo.sender_first};
}

void ForwardStep::fill_halo(const HaloLists& halo_lists, const void* received, ConstKeyValue own, KeyValue halo) {
  rows.copy(halo_lists.own_to_halo.view(), own, halo, element);
  rows.from_tokens(halo_lists.received_to_halo.view(), received, halo, element);
}

void ForwardStep::compress_runs(const ListView<SummaryRun>& runs, ConstKeyValue input) {
  if (runs.count == 0) return;
  const auto one = [&](const void* tokens, const CompressorTensors& parameters, std::int64_t dim, std::int64_t hidden,
                       void* summaries, void* scratch, Stream stream) {
    auto arguments = layer.arguments<Compress>(scratch);
    arguments.dim = dim;
    arguments.hidden = hidden;
    arguments.input = tokens;
    arguments.parameters = pointers_of(parameters);
    arguments.summaries = summaries;
    arguments.runs = runs;
    device.run(arguments, stream);
  };
  // Keys and values at the same time: the matrix products of one alone do not fill a GPU.
  const Config& config = layer.config;
  wire.hand_over(compute, wire.side_stream());
  one(input.v, in.compress_v, config.head_dim_v, config.compress_hidden_v, saved.summaries.v, work.side_scratch,
      wire.side_stream());
  one(input.k, in.compress_k, config.head_dim_qk, config.compress_hidden_k, saved.summaries.k, work.scratch, compute);
  wire.hand_over(wire.side_stream(), compute);
}

void ForwardStep::compress() {
  const auto timed = wire.timed(Stage::compress, compute);
  const ConstKeyValue own{in.k.cmp.data, in.v.cmp.data};
  compress_runs(lists.own_runs.view(), own);  // while the halo travels
  if (!layer.alone()) device.wait(compute, wire.summary_halo_arrived.get());
  fill_halo(lists.summary_halo, work.summary_halo.receive, own, saved.summary_halo);
  compress_runs(lists.halo_runs.view(), saved.summary_halo);
}

void ForwardStep::gather_summaries() {
  if (layer.alone()) return;
  rows.to_tokens(lists.own_to_gathered.view(), saved.summaries, work.gathered, element);
  wire.hand_over(compute, wire.stream());
  const auto timed = wire.timed(Stage::gather_summaries, wire.stream());
  std::vector<std::size_t> bytes;
  for (const std::int64_t own : plan.layout.own_summaries) bytes.push_back(to_size(own) * token_bytes);
  wire.meet(Traffic::summaries);
  wire.all_gather(Traffic::summaries, work.gathered, bytes);
  device.record(wire.summaries_arrived.get(), wire.stream());
}

void ForwardStep::window_attention() {
  if (!layer.alone()) device.wait(compute, wire.window_halo_arrived.get());
  const auto timed = wire.timed(Stage::window, compute);
  fill_halo(lists.window_halo, work.window_halo.receive, {in.k.win.data, in.v.win.data}, saved.window_halo);
  attend.window();
}

void ForwardStep::compressed_attention() {
  if (!layer.alone()) {
    device.wait(compute, wire.summaries_arrived.get());
    rows.from_tokens(lists.gathered_to_all.view(), work.gathered, saved.summaries, element);
  }
  rotate_summaries();
  if (plan.rows == 0) return;
  const auto timed = wire.timed(Stage::compressed, compute);
  attend.compressed();
}

// Every rank rotates all summaries of keys: that is less than a row of attention over them.
void ForwardStep::rotate_summaries() {
  if (!in.summary_rotation.cos) return;
  device.run(summary_rotation(layer, lists, in.summary_rotation, saved.summaries.k, layer.options.dtype), compute);
}

void ForwardStep::select_blocks() {
  if (plan.rows == 0) return;
  const auto timed = wire.timed(Stage::select, compute);
  if (layer.has_branch(slc)) {
    if (layer.options.given_selection)
      device.copy(saved.selected, in.selected, layer.selected_bytes(), compute);
    else
      attend.select();
  }
  attend.clear_compressed();
}

// Marks the blocks that this rank's queries need, and tells the other ranks where they must know.
std::int64_t ForwardStep::request_blocks() {
  if (!plan.blocks.any_reachable()) return 0;
  const auto timed = wire.timed(Stage::demand, compute);
  std::uint32_t* own = layer.pulls() ? saved.needs : work.needs + layer.need_words() * plan.rank;
  device.fill_zero(own, layer.need_bytes(), compute);
  if (plan.rows > 0) {
    auto mark = layer.arguments<MarkNeeds>(work.scratch);
    mark.queries = lists.queries.get();
    mark.selected = saved.selected;
    mark.bitmap = own;
    device.run(mark, compute);
  }
  if (!layer.pulls()) return requests.send(layer, wire, work.needs, compute);
  requests.copy_own(layer, device, own, compute);
  return 0;
}

void ForwardStep::selected_attention(const planning::BlockSchedule& schedule) {
  if (!layer.has_branch(slc)) return attend.finish_selected();
  BlockRounds rounds(wire, layer, lists, round_resources,
                     {.schedule = schedule,
                      .buffers = work.exchange,
                      .saved_blocks = saved.blocks,
                      .blocks = layer.alone() ? Blocks::in_place : Blocks::brought_in,
                      .own = {in.k.slc.data, in.v.slc.data},
                      .traffic = Traffic::blocks,
                      .stage = Stage::fetch_blocks,
                      .window = window.blocks,
                      .needs = saved.needs},
                     compute);
  const CombineBranches combination = this->combination();
  rounds.first_to_last([&](std::size_t round, const void* pool) {
    if (plan.rows == 0) return;
    const auto timed = wire.timed(Stage::selected, compute);
    attend.selected(schedule.rounds[round], pool, rounds.table(),
                    layer.sizes.combines_selected ? &combination : nullptr);
  });
  attend.finish_selected();
}

void ForwardStep::combine() {
  if (plan.rows == 0 || layer.sizes.combines_selected) return;
  const auto timed = wire.timed(Stage::combine, compute);
  device.run(combination(), compute);
}

void ForwardStep::write_log_sum_exps() {
  const std::array wanted{&given.log_sum_exp.cmp, &given.log_sum_exp.slc, &given.log_sum_exp.win};
  for (std::size_t branch = 0; branch < wanted.size(); ++branch)
    if (*wanted[branch] && plan.rows > 0)
      device.copy(wanted[branch]->data, branches.log_sum_exp[branch], wanted[branch]->bytes(), compute);
}

CombineBranches ForwardStep::combination() const {
  auto combine = layer.arguments<CombineBranches>(work.scratch);
  combine.rows = plan.rows;
  combine.gate = in.gate.data;
  combine.o_cmp = branches.out[cmp];
  combine.o_slc = branches.out[slc];
  combine.o_win = branches.out[win];
  combine.out = given.out.data;
  return combine;
}

}  // namespace

ForwardResult run_forward(const LayerPlan& layer, const LayerLists& lists, Wire& wire, RoundResources& rounds,
                          BlockRequests& requests, const ForwardArguments& given, Stream compute) {
  return ForwardStep(layer, lists, wire, rounds, requests, given, compute).run();
}

}  // namespace cpnsa
