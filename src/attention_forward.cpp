// The life of a forward step. `compute` is the caller's stream, `wire` the library's own; see DESIGN.md for the
// picture.

#include <algorithm>

#include "src/attention_impl.hpp"
#include "src/branch_attention.hpp"

namespace cpnsa {
namespace {

class ForwardStep {
 public:
  ForwardStep(Layer& attention, const AttentionInputs& inputs, void* out, SavedForward* saved, void* workspace,
              Stream compute);

  void run(std::int32_t* selected_out);

  std::shared_ptr<const planning::BlockSchedule> schedule() const { return agreed; }
  /// Bytes that reading the demand takes on the wire.
  std::int64_t demand_bytes() const { return demand_received; }

 private:
  void exchange_halos();
  void compress();
  void gather_summaries();
  void window_attention();
  void compressed_attention();
  void select_blocks();
  void send_demand();
  std::shared_ptr<const planning::BlockSchedule> read_demand();
  void selected_attention();
  void combine();
  CombineBranches combination() const;

  void place_halo(const HaloLists& lists, const void* received, const void* own_k, const void* own_v, void* halo_k,
                  void* halo_v);
  void compress_runs(const ListView<SummaryRun>& runs, const void* k, const void* v);

  template <class Arguments>
  Arguments stage() const {
    return a.stage<Arguments>(work.scratch);
  }

  Layer& a;
  const AttentionInputs& in;
  void* out;
  Arena saved_arena;
  Arena work_arena;
  SavedBuffers kept;
  ForwardBuffers work;
  const BranchBuffers& branches;
  BranchAttention attend;
  std::shared_ptr<const planning::BlockSchedule> agreed;
  std::int64_t demand_received = 0;
  const bool alone;         // nothing travels
  const bool reads_demand;  // the host does
  Stream compute;
  Stream wire;
};

ForwardStep::ForwardStep(Layer& attention, const AttentionInputs& inputs, void* out, SavedForward* saved,
                         void* workspace, Stream compute)
    : a(attention),
      in(inputs),
      out(out),
      saved_arena(saved ? saved->memory : nullptr),
      work_arena(workspace),
      kept(a.saved_buffers(saved ? saved_arena : work_arena)),
      work(a.forward_buffers(work_arena)),
      branches(a.sizes.keeps_branches ? kept.branches : work.branches),
      attend(a, in, kept, branches, work.scratch, compute),
      alone(a.communicator.size() == 1),
      reads_demand(a.plan.blocks.any_reachable() && a.options.exchange != Exchange::gather),
      compute(compute),
      wire(a.communication.get()) {}

void ForwardStep::run(std::int32_t* selected_out) {
  exchange_halos();
  compress();
  gather_summaries();
  if (!reads_demand) window_attention();  // while the summaries travel
  compressed_attention();
  select_blocks();
  send_demand();
  if (reads_demand) window_attention();  // while the demand does, and the host plans what follows from it
  agreed = read_demand();
  selected_attention();
  combine();
  if (selected_out && a.plan.rows > 0)
    a.device.copy(
        selected_out, kept.selected,
        static_cast<std::size_t>(a.plan.rows * a.config.num_kv_heads * a.config.select_count) * sizeof(std::int32_t),
        compute);
  if (!alone) a.hand_over(wire, compute);  // the caller may free the workspace once `compute` has drained
}

void ForwardStep::exchange_halos() {
  if (alone) return;
  a.rows_to_tokens(a.summary_halo.pack.view(), in.k.cmp.data, in.v.cmp.data, work.summary_halo_send, a.sizes.element,
                   compute);
  a.rows_to_tokens(a.window_halo.pack.view(), in.k.win.data, in.v.win.data, work.window_halo_send, a.sizes.element,
                   compute);
  a.hand_over(compute, wire);
  const StageTimer::Scope timed(a.timer, Stage::exchange_halo, wire);
  const std::size_t token = static_cast<std::size_t>(a.sizes.token_width()) * a.sizes.element;
  a.exchange(Traffic::halo, a.plan.summary_halo.sends, work.summary_halo_send, a.plan.summary_halo.receives,
             work.summary_halo_receive, token);
  a.device.record(a.summary_halo_arrived.get(), wire);
  a.exchange(Traffic::halo, a.plan.window_halo.sends, work.window_halo_send, a.plan.window_halo.receives,
             work.window_halo_receive, token);
  a.device.record(a.window_halo_arrived.get(), wire);
}

void ForwardStep::place_halo(const HaloLists& lists, const void* received, const void* own_k, const void* own_v,
                             void* halo_k, void* halo_v) {
  a.copy_rows(lists.own.view(), own_k, halo_k, a.sizes.k_width, a.sizes.element, compute);
  a.copy_rows(lists.own.view(), own_v, halo_v, a.sizes.v_width, a.sizes.element, compute);
  a.tokens_to_rows(lists.place.view(), received, halo_k, halo_v, a.sizes.element, compute);
}

void ForwardStep::compress_runs(const ListView<SummaryRun>& runs, const void* k, const void* v) {
  if (runs.count == 0) return;
  const auto one = [&](const void* input, const CompressorTensors& parameters, std::int64_t dim, std::int64_t hidden,
                       void* summaries, void* scratch, Stream stream) {
    auto arguments = a.stage<Compress>(scratch);
    arguments.dim = dim;
    arguments.hidden = hidden;
    arguments.input = input;
    arguments.parameters = pointers_of(parameters);
    arguments.summaries = summaries;
    arguments.runs = runs;
    a.device.run(arguments, stream);
  };
  // Side by side: the products of one fill a part of a card.
  const Stream beside = a.beside.get();
  a.hand_over(compute, beside);
  one(v, in.compress_v, a.config.head_dim_v, a.config.compress_hidden_v, kept.summary_values, work.scratch_beside,
      beside);
  one(k, in.compress_k, a.config.head_dim_qk, a.config.compress_hidden_k, kept.summary_keys, work.scratch, compute);
  a.hand_over(beside, compute);
}

void ForwardStep::compress() {
  const StageTimer::Scope timed(a.timer, Stage::compress, compute);
  compress_runs(a.own_runs.view(), in.k.cmp.data, in.v.cmp.data);  // while the halo travels
  if (!alone) a.device.wait(compute, a.summary_halo_arrived.get());
  place_halo(a.summary_halo, work.summary_halo_receive, in.k.cmp.data, in.v.cmp.data, kept.summary_halo_k,
             kept.summary_halo_v);
  compress_runs(a.halo_runs.view(), kept.summary_halo_k, kept.summary_halo_v);
}

void ForwardStep::gather_summaries() {
  if (alone) return;
  a.rows_to_tokens(a.own_to_gathered.view(), kept.summary_keys, kept.summary_values, work.gathered, a.sizes.element,
                   compute);
  a.hand_over(compute, wire);
  const StageTimer::Scope timed(a.timer, Stage::gather_summaries, wire);
  const std::size_t token = static_cast<std::size_t>(a.sizes.token_width()) * a.sizes.element;
  std::vector<std::size_t> bytes;
  for (const std::int64_t own : a.plan.layout.own_summaries) bytes.push_back(static_cast<std::size_t>(own) * token);
  const auto first = static_cast<std::size_t>(a.plan.gathered_first[static_cast<std::size_t>(a.plan.rank)]);
  a.communicator.all_gather(static_cast<const std::byte*>(work.gathered) + first * token, work.gathered, bytes,
                            a.device, wire);
  a.count_received(Traffic::summaries,
                   (a.plan.layout.summaries - a.plan.layout.own_summaries[static_cast<std::size_t>(a.plan.rank)]) *
                       static_cast<std::int64_t>(token));
  a.device.record(a.summaries_arrived.get(), wire);
}

void ForwardStep::window_attention() {
  if (!alone) a.device.wait(compute, a.window_halo_arrived.get());
  const StageTimer::Scope timed(a.timer, Stage::window, compute);
  place_halo(a.window_halo, work.window_halo_receive, in.k.win.data, in.v.win.data, kept.window_halo_k,
             kept.window_halo_v);
  attend.window();
}

void ForwardStep::compressed_attention() {
  if (!alone) {
    a.device.wait(compute, a.summaries_arrived.get());
    a.tokens_to_rows(a.gathered_to_all.view(), work.gathered, kept.summary_keys, kept.summary_values, a.sizes.element,
                     compute);
  }
  if (a.plan.rows == 0) return;
  const StageTimer::Scope timed(a.timer, Stage::compressed, compute);
  attend.compressed();
}

void ForwardStep::select_blocks() {
  if (a.plan.rows == 0) return;
  const StageTimer::Scope timed(a.timer, Stage::select, compute);
  auto select = stage<SelectBlocks>();
  select.queries = a.queries.get();
  select.q = in.q.data;
  select.keys = kept.summary_keys;
  select.log_sum_exp = branches.lse_cmp;
  select.selected = kept.selected;
  a.device.run(select, compute);
}

// Who needs which blocks: to all ranks where that decides what is sent to whom, else for the statistics alone.
void ForwardStep::send_demand() {
  a.own_demand_pending = false;
  a.statistics.blocks_needed = 0;
  if (!a.plan.blocks.any_reachable()) return;

  const StageTimer::Scope timed(a.timer, Stage::demand, compute);
  const std::size_t own_bytes = a.demand_bytes();
  std::uint32_t* own = work.demand + work.demand_words * a.plan.rank;
  a.device.fill_zero(own, own_bytes, compute);
  if (a.plan.rows > 0) {
    auto mark = stage<MarkDemand>();
    mark.queries = a.queries.get();
    mark.selected = kept.selected;
    mark.bitmap = own;
    a.device.run(mark, compute);
  }
  if (!reads_demand) {
    a.device.copy(a.demand_host.data(), own, own_bytes, compute);
    a.own_demand_pending = true;
    return;
  }
  const auto ranks = static_cast<std::size_t>(a.communicator.size());
  a.hand_over(compute, wire);
  a.communicator.all_gather(own, work.demand, std::vector<std::size_t>(ranks, own_bytes), a.device, wire);
  demand_received = static_cast<std::int64_t>(own_bytes * (ranks - 1));
  a.count_received(Traffic::control, demand_received);
  a.device.copy(a.demand_host.data(), work.demand, own_bytes * ranks, wire);
}

// The one place where the host waits in a forward.
std::shared_ptr<const planning::BlockSchedule> ForwardStep::read_demand() {
  const planning::BlockPlanner& blocks = a.plan.blocks;
  if (!blocks.any_reachable()) {  // nothing travels; the table still says where own blocks are
    a.statistics.exchange = a.options.exchange == Exchange::automatic ? Exchange::fetch : a.options.exchange;
    return a.everything;
  }
  a.statistics.exchange = Exchange::gather;
  if (!reads_demand) return a.everything;

  a.communicator.wait(a.device, wire);
  planning::DemandMatrix demand(a.communicator.size(), a.plan.layout.blocks, a.config.num_kv_heads);
  const auto* words = static_cast<const std::uint32_t*>(a.demand_host.data());
  std::copy_n(words, demand.words().size(), demand.words().begin());
  a.statistics.blocks_needed = blocks.needed(demand, a.plan.rank);
  if (a.options.exchange == Exchange::automatic && blocks.choose(demand) == Exchange::gather) return a.everything;
  a.statistics.exchange = Exchange::fetch;
  return std::make_shared<planning::BlockSchedule>(blocks.fetch(demand));
}

void ForwardStep::selected_attention() {
  const planning::BlockSchedule& schedule = *agreed;
  const BlockLocation* const table = a.upload(schedule, work.exchange, a.forward_lists, compute);
  a.statistics.blocks_fetched = schedule.received;
  const std::size_t rounds = schedule.rounds.size();
  const CombineBranches combination = this->combination();
  const auto bring = [&](std::size_t round) {
    if (alone) return;
    a.hand_over(compute, wire);  // the lists are there, and the round before last has left its pool
    a.fetch(schedule, round, work.exchange, a.pool_of(schedule, round, work.exchange, kept), in.k.slc.data,
            in.v.slc.data, Traffic::blocks, Stage::fetch_blocks);
  };
  bring(0);
  for (std::size_t round = 0; round < rounds; ++round) {
    if (round + 1 < rounds) bring(round + 1);
    if (!alone) a.device.wait(compute, a.fetched[round % 2].get());
    if (a.plan.rows == 0) continue;
    const StageTimer::Scope timed(a.timer, Stage::selected, compute);
    attend.selected(schedule.rounds[round], a.pool_of(schedule, round, work.exchange, kept), table,
                    a.sizes.combines_selected ? &combination : nullptr);
  }
}

void ForwardStep::combine() {
  if (a.plan.rows == 0 || a.sizes.combines_selected) return;
  const StageTimer::Scope timed(a.timer, Stage::combine, compute);
  a.device.run(combination(), compute);
}

CombineBranches ForwardStep::combination() const {
  auto combine = stage<CombineBranches>();
  combine.rows = a.plan.rows;
  combine.gate = in.gate.data;
  combine.o_cmp = branches.o_cmp;
  combine.o_slc = branches.o_slc;
  combine.o_win = branches.o_win;
  combine.out = out;
  return combine;
}

}  // namespace

CompressorPointers pointers_of(const CompressorTensors& tensors) {
  CompressorPointers pointers;
  schema::for_each_compressor_member([](auto, const void*& to, const TensorView& from) { to = from.data; }, pointers,
                                     tensors);
  return pointers;
}

void Attention::forward(const AttentionInputs& inputs, const TensorView& out, std::int32_t* selected,
                        SavedForward* saved, void* workspace, Stream stream) {
  Impl& self = *impl_;
  self.enter("forward", [&] {
    self.device.check_stream(stream);
    self.validate_forward(inputs, out, selected, saved, workspace);
  });
  self.guarded(stream, [&] {
    self.statistics = {};
    self.timer.reset();
    if (saved) *saved->state_ = {};
    ForwardStep step(self, inputs, out.data, saved, workspace, stream);
    step.run(selected);
    if (saved) *saved->state_ = {{self.number, self.calls, step.schedule()}};
    self.account(self.plan.bytes_forward(*step.schedule()), step.demand_bytes());
  });
}

}  // namespace cpnsa
