// The life of a backward step. `compute` is the caller's stream, `wire` the library's own; see DESIGN.md for the
// picture.
//
// Every sum has one order: a branch's own contribution first, then what comes back, peers ascending; branches in the
// order window, selected, compressed.

#include <algorithm>
#include <string>

#include "src/attention_impl.hpp"
#include "src/branch_attention.hpp"
#include "src/gradient_sums.hpp"

namespace cpnsa {
namespace {

enum Branch { cmp, slc, win };

class BackwardStep {
 public:
  BackwardStep(Layer& attention, const AttentionInputs& inputs, const void* dout, void* saved_memory,
               const planning::BlockSchedule& schedule, const AttentionGradients& gradients, void* workspace,
               Stream compute);

  void run();
  std::int64_t parameter_bytes() const { return parameters_received; }

 private:
  void zero_accumulators();
  void bring(std::size_t round);
  void recompute_branches();
  void combine();
  void window();
  void selected();
  void compressed();
  void reduce_summary_gradients();
  void compress();

  void add_returned_blocks(std::size_t round);
  void send_halo_back(const HaloLists& lists, const planning::RankHalo& halo, const void* dhalo_k, const void* dhalo_v,
                      void* send, void* receive, Branch branch);
  void compress_runs(const ListView<SummaryRun>& runs, const void* k, const void* v, void* dk, void* dv);
  BranchGradient gradient_of(Branch branch, const void* log_sum_exp) const;

  template <class Arguments>
  Arguments stage() const {
    return a.stage<Arguments>(work.scratch);
  }
  std::size_t accumulated_bytes(std::int64_t rows, std::int64_t width) const {
    return LayerSizes::bytes(rows, width, a.sizes.accumulated);
  }

  Layer& a;
  const AttentionInputs& in;
  const void* dout;
  const planning::BlockSchedule& schedule;
  const AttentionGradients& out;
  Arena saved_arena;
  Arena work_arena;
  SavedBuffers kept;
  BackwardBuffers work;
  GradientSums sums;
  const BranchBuffers& branches;
  const BlockLocation* table = nullptr;  // [B, G]
  Stream compute;
  Stream wire;

  std::int64_t parameters_received = 0;
  std::size_t present_from;  // rounds whose blocks need not be brought: they are kept, or still in their pools
};

BackwardStep::BackwardStep(Layer& attention, const AttentionInputs& inputs, const void* dout, void* saved_memory,
                           const planning::BlockSchedule& schedule, const AttentionGradients& gradients,
                           void* workspace, Stream compute)
    : a(attention),
      in(inputs),
      dout(dout),
      schedule(schedule),
      out(gradients),
      saved_arena(saved_memory),
      work_arena(workspace),
      kept(a.saved_buffers(saved_arena)),
      work(a.backward_buffers(work_arena, kept.branches)),
      sums(a, out, work),
      branches(work.branches),
      compute(compute),
      wire(a.communication.get()),
      present_from(a.sizes.keeps_blocks ? 0 : schedule.rounds.size()) {}

void BackwardStep::run() {
  table = a.upload(schedule, work.exchange, a.backward_lists, compute);
  if (!a.sizes.keeps_branches) recompute_branches();
  bring(schedule.rounds.size() - 1);
  combine();            // while the first blocks travel
  zero_accumulators();  // after it: sums may lie where the branches' outputs were
  window();
  selected();
  compressed();
  reduce_summary_gradients();
  compress();
  parameters_received = a.sum_parameters(sums.parameters, work.parameters, compute);
  {
    const StageTimer::Scope timed(a.timer, Stage::finish_gradients, compute);
    sums.convert(compute);
  }
  a.hand_over(wire, compute);
}

void BackwardStep::zero_accumulators() {
  sums.zero(compute);
  const auto zero = [&](void* memory, std::int64_t count, std::int64_t width) {
    if (count * width > 0) a.device.fill_zero(memory, accumulated_bytes(count, width), compute);
  };
  zero(work.dsummary_keys, a.plan.layout.summaries, a.sizes.k_width);
  zero(work.dsummary_values, a.plan.layout.summaries, a.sizes.v_width);
  zero(work.dsummary_halo_k, a.plan.summary_halo.rows, a.sizes.k_width);
  zero(work.dsummary_halo_v, a.plan.summary_halo.rows, a.sizes.v_width);
  zero(work.dwindow_halo_k, a.plan.window_halo.rows, a.sizes.k_width);
  zero(work.dwindow_halo_v, a.plan.window_halo.rows, a.sizes.v_width);
}

void BackwardStep::bring(std::size_t round) {
  if (round >= present_from) return;
  a.hand_over(compute, wire);  // the lists are there, and the round that had the pool before has left it
  a.fetch(schedule, round, work.exchange, a.pool_of(schedule, round, work.exchange, kept), in.k.slc.data, in.v.slc.data,
          Traffic::refetched_blocks, Stage::refetch_blocks);
}

// The gate's gradients need the outputs of all branches, so all rounds come in here, and the last two stay where they
// are: the backward begins with those.
void BackwardStep::recompute_branches() {
  const BranchAttention attend(a, in, kept, branches, work.scratch, compute);
  const std::size_t rounds = schedule.rounds.size();
  bring(0);
  {
    const StageTimer::Scope timed(a.timer, Stage::window_backward, compute);
    attend.window();
  }
  {
    const StageTimer::Scope timed(a.timer, Stage::compressed_backward, compute);
    attend.compressed();
  }
  for (std::size_t round = 0; round < rounds; ++round) {
    if (round + 1 < rounds) bring(round + 1);
    a.device.wait(compute, a.fetched[round % 2].get());
    const StageTimer::Scope timed(a.timer, Stage::selected_backward, compute);
    attend.selected(schedule.rounds[round], a.pool_of(schedule, round, work.exchange, kept), table);
  }
  if (!a.sizes.keeps_blocks) present_from = rounds - std::min<std::size_t>(rounds, 2);
}

void BackwardStep::combine() {
  if (a.plan.rows == 0) return;
  const StageTimer::Scope timed(a.timer, Stage::combine_backward, compute);
  auto combine = stage<CombineBranchesBackward>();
  combine.rows = a.plan.rows;
  combine.gate = in.gate.data;
  combine.o_cmp = branches.o_cmp;
  combine.o_slc = branches.o_slc;
  combine.o_win = branches.o_win;
  combine.dout = dout;
  combine.dgate = sums.gate;
  combine.weights = work.weights;
  combine.deltas = work.deltas;
  a.device.run(combine, compute);
}

BranchGradient BackwardStep::gradient_of(Branch branch, const void* log_sum_exp) const {
  const std::size_t offset = accumulated_bytes(branch * a.plan.rows, a.config.num_q_heads);
  return {dout, static_cast<const std::byte*>(work.weights) + offset,
          static_cast<const std::byte*>(work.deltas) + offset, log_sum_exp};
}

// Gradients of halo rows: to the own rows among them at once, the rest to their owners, who add them in rank order.
void BackwardStep::send_halo_back(const HaloLists& lists, const planning::RankHalo& halo, const void* dhalo_k,
                                  const void* dhalo_v, void* send, void* receive, Branch branch) {
  a.add_rows(lists.back.view(), dhalo_k, sums.k[branch], a.sizes.k_width, compute);
  a.add_rows(lists.back.view(), dhalo_v, sums.v[branch], a.sizes.v_width, compute);
  a.rows_to_tokens(lists.unplace.view(), dhalo_k, dhalo_v, send, a.sizes.accumulated, compute);
  a.hand_over(compute, wire);
  {
    const StageTimer::Scope timed(a.timer, Stage::return_halo_gradients, wire);
    a.exchange(Traffic::halo_gradients, halo.receives, send, halo.sends, receive,
               accumulated_bytes(1, a.sizes.token_width()));
  }
  a.hand_over(wire, compute);
  for (std::size_t i = 0; i < halo.sends.size(); ++i) {
    const std::int64_t first = halo.packed_first[i];
    const std::int64_t last =
        i + 1 < halo.sends.size() ? halo.packed_first[i + 1] : static_cast<std::int64_t>(halo.packed.size());
    a.add_tokens_to_rows(lists.unpack.view(first, last - first), receive, sums.k[branch], sums.v[branch], compute);
  }
}

void BackwardStep::window() {
  if (a.plan.rows > 0) {
    const StageTimer::Scope timed(a.timer, Stage::window_backward, compute);
    auto window = stage<WindowAttentionBackward>();
    window.queries = a.queries.get();
    window.q = in.q.data;
    window.k = in.k.win.data;
    window.v = in.v.win.data;
    window.halo_k = kept.window_halo_k;
    window.halo_v = kept.window_halo_v;
    window.gradient = gradient_of(win, branches.lse_win);
    window.dq = sums.q;
    window.dk = sums.k[win];
    window.dv = sums.v[win];
    window.dhalo_k = work.dwindow_halo_k;
    window.dhalo_v = work.dwindow_halo_v;
    a.device.run(window, compute);
  }
  send_halo_back(a.window_halo, a.plan.window_halo, work.dwindow_halo_k, work.dwindow_halo_v, work.window_halo_send,
                 work.window_halo_receive, win);
}

void BackwardStep::add_returned_blocks(std::size_t round) {
  a.device.wait(compute, a.returned[round % 2].get());
  const ListView<BlockSlot> packed = a.packed_of(schedule, round, work.exchange);
  for (const planning::PeerRange& peer : schedule.rounds[round].sends) {
    auto add = stage<AddBlocks>();
    add.pool = work.returned_blocks[round % 2];
    add.dk = sums.k[slc];
    add.dv = sums.v[slc];
    add.blocks = {packed.host + peer.first, packed.device + peer.first, peer.count};
    a.device.run(add, compute);
  }
}

void BackwardStep::selected() {
  const std::size_t rounds = schedule.rounds.size();
  for (std::size_t round = rounds; round-- > 0;) {
    const planning::ExchangeRound& now = schedule.rounds[round];
    if (round > 0) bring(round - 1);
    a.device.wait(compute, a.fetched[round % 2].get());
    void* dpool = work.dpools[round % 2];
    if (now.received > 0) a.device.fill_zero(dpool, accumulated_bytes(now.received, a.sizes.slot_elements), compute);
    if (a.plan.rows > 0) {
      const StageTimer::Scope timed(a.timer, Stage::selected_backward, compute);
      auto selected = stage<SelectedAttentionBackward>();
      selected.queries = a.queries.get();
      selected.q = in.q.data;
      selected.k = in.k.slc.data;
      selected.v = in.v.slc.data;
      selected.pool = a.pool_of(schedule, round, work.exchange, kept);
      selected.pool_slots = now.received;
      selected.table = table;
      selected.selected = kept.selected;
      selected.group_begin = now.head_begin;
      selected.group_end = now.head_end;
      selected.gradient = gradient_of(slc, branches.lse_slc);
      selected.dq = sums.q;
      selected.dk = sums.k[slc];
      selected.dv = sums.v[slc];
      selected.dpool = dpool;
      a.device.run(selected, compute);
    }
    a.hand_over(compute, wire);
    {
      const StageTimer::Scope timed(a.timer, Stage::return_block_gradients, wire);
      a.exchange(Traffic::block_gradients, now.receives, dpool, now.sends, work.returned_blocks[round % 2],
                 accumulated_bytes(1, a.sizes.slot_elements));
      a.device.record(a.returned[round % 2].get(), wire);
    }
    if (round + 1 < rounds) add_returned_blocks(round + 1);
  }
  add_returned_blocks(0);
}

void BackwardStep::compressed() {
  if (a.plan.rows == 0) return;
  const StageTimer::Scope timed(a.timer, Stage::compressed_backward, compute);
  auto compressed = stage<CompressedAttentionBackward>();
  compressed.queries = a.queries.get();
  compressed.q = in.q.data;
  compressed.keys = kept.summary_keys;
  compressed.values = kept.summary_values;
  compressed.gradient = gradient_of(cmp, branches.lse_cmp);
  compressed.dq = sums.q;
  compressed.dkeys = work.dsummary_keys;
  compressed.dvalues = work.dsummary_values;
  a.device.run(compressed, compute);
}

void BackwardStep::reduce_summary_gradients() {
  const int ranks = a.communicator.size();
  if (ranks == 1) return;
  a.rows_to_tokens(a.all_to_gathered.view(), work.dsummary_keys, work.dsummary_values, work.summaries_send,
                   a.sizes.accumulated, compute);
  const std::int64_t own = a.plan.layout.own_summaries[static_cast<std::size_t>(a.plan.rank)];
  std::vector<planning::PeerRange> sends, receives;
  for (int peer = 0; peer < ranks; ++peer) {
    if (peer == a.plan.rank) continue;
    const std::int64_t theirs = a.plan.layout.own_summaries[static_cast<std::size_t>(peer)];
    if (theirs > 0) sends.push_back({peer, a.plan.gathered_first[static_cast<std::size_t>(peer)], theirs});
    if (own > 0) receives.push_back({peer, static_cast<std::int64_t>(receives.size()) * own, own});
  }
  a.hand_over(compute, wire);
  {
    const StageTimer::Scope timed(a.timer, Stage::reduce_summary_gradients, wire);
    a.exchange(Traffic::summary_gradients, sends, work.summaries_send, receives, work.summaries_receive,
               accumulated_bytes(1, a.sizes.token_width()));
  }
  a.hand_over(wire, compute);
  for (const planning::PeerRange& received : receives)
    a.add_tokens_to_rows(a.own_to_all.view(),
                         static_cast<const std::byte*>(work.summaries_receive) +
                             accumulated_bytes(received.first, a.sizes.token_width()),
                         work.dsummary_keys, work.dsummary_values, compute);
}

void BackwardStep::compress_runs(const ListView<SummaryRun>& runs, const void* k, const void* v, void* dk_input,
                                 void* dv_input) {
  if (runs.count == 0) return;
  const auto one = [&](const void* input, const CompressorTensors& parameters, const CompressorTensors& gradients,
                       std::int64_t dim, std::int64_t hidden, const void* dsummaries, void* dinput) {
    auto arguments = stage<CompressBackward>();
    arguments.dim = dim;
    arguments.hidden = hidden;
    arguments.input = input;
    arguments.parameters = pointers_of(parameters);
    arguments.dsummaries = dsummaries;
    arguments.dinput = dinput;
    schema::for_each_compressor_member([](auto, void*& to, const TensorView& from) { to = from.data; },
                                       arguments.dparameters, gradients);
    arguments.runs = runs;
    a.device.run(arguments, compute);
  };
  one(k, in.compress_k, sums.parameters.compress_k, a.config.head_dim_qk, a.config.compress_hidden_k,
      work.dsummary_keys, dk_input);
  one(v, in.compress_v, sums.parameters.compress_v, a.config.head_dim_v, a.config.compress_hidden_v,
      work.dsummary_values, dv_input);
}

void BackwardStep::compress() {
  {
    const StageTimer::Scope timed(a.timer, Stage::compress_backward, compute);
    compress_runs(a.own_runs.view(), in.k.cmp.data, in.v.cmp.data, sums.k[cmp], sums.v[cmp]);
    compress_runs(a.halo_runs.view(), kept.summary_halo_k, kept.summary_halo_v, work.dsummary_halo_k,
                  work.dsummary_halo_v);
  }
  send_halo_back(a.summary_halo, a.plan.summary_halo, work.dsummary_halo_k, work.dsummary_halo_v,
                 work.summary_halo_send, work.summary_halo_receive, cmp);
}

}  // namespace

void Attention::backward(const AttentionInputs& inputs, const TensorView& dout, SavedForward& saved,
                         const AttentionGradients& gradients, void* workspace, Stream stream) {
  Impl& self = *impl_;
  // Of one forward on every rank: each has its own schedule of blocks.
  const std::string call =
      "backward of_call=" + std::to_string(saved.state_->call) + " parameters=" + given_parameters(gradients);
  self.enter(call, [&] {
    self.device.check_stream(stream);
    self.validate_backward(inputs, dout, *saved.state_, saved.memory, gradients, workspace);
  });
  self.guarded(stream, [&] {
    saved.state_->spent = self.sizes.reuses_branches && self.sizes.keeps_branches;
    const planning::BlockSchedule& schedule = *saved.state_->schedule;
    BackwardStep step(self, inputs, dout.data, saved.memory, schedule, gradients, workspace, stream);
    step.run();
    auto predicted = self.plan.bytes_backward(schedule);
    predicted[static_cast<std::size_t>(Traffic::parameter_gradients)] += step.parameter_bytes();
    self.account(predicted, 0);
  });
}

}  // namespace cpnsa
