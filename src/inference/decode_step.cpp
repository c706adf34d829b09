// The life of a decoding step of one layer. DESIGN.md says which messages it sends and why.

#include "src/inference/decode_step.hpp"

#include <vector>

#include "cpnsa/flight_recorder.hpp"
#include "src/layer/parameters.hpp"
#include "src/planning/at.hpp"

namespace cpnsa {
namespace {

enum Branch { cmp, slc, win };

class DecodeStep {
 public:
  DecodeStep(const DecodePlan& plan, Device& device, Communicator& communicator, std::size_t scratch_bytes,
             const DecodeArguments& given, DecodeStatistics& statistics, Stream stream);

  void run();

 private:
  void append();
  void compress();
  void compressed_attention(void* log_sum_exp);
  void select();
  void merge_with_replicated_summaries();
  void merge_with_sharded_summaries();

  template <class Op>
  Op op() const {
    Op op{};
    op.config = &plan.config;
    op.dtype = plan.options.cache.dtype;
    op.scratch = buffers.scratch;
    op.schedule = given.schedule;
    op.sequences = given.batch.sequences;
    op.tokens = tokens;
    op.max_length = plan.options.max_length;
    return op;
  }
  DecodeTokenAttention token_attention() const;
  DecodeMergeParts merge_parts() const;

  PagedRows rows(CachePart part) const { return plan.rows(part, given.cache, given.batch); }
  /// Memory of the message's part of this rank, `offset` bytes from its beginning.
  void* own_part(DecodeTraffic traffic, std::size_t offset = 0) const;
  /// A tensor of all ranks' parts, `offset` bytes from the beginning of each.
  RankParts parts(DecodeTraffic traffic, std::size_t offset = 0) const;
  void gather(DecodeTraffic traffic);

  const DecodePlan& plan;
  Device& device;
  Communicator& communicator;
  const DecodeArguments& given;
  DecodeStatistics& statistics;
  Stream stream;
  const std::int64_t tokens;

  Arena arena;
  const DecodeBuffers buffers;
  std::array<void*, 3> log_sum_exp;  // by branch, over all ranks: the caller's, or the workspace's
  std::int32_t* selected;            // the caller's, or the workspace's
};

DecodeStep::DecodeStep(const DecodePlan& plan_, Device& device_, Communicator& communicator_, std::size_t scratch_bytes,
                       const DecodeArguments& given_, DecodeStatistics& statistics_, Stream stream_)
    : plan(plan_),
      device(device_),
      communicator(communicator_),
      given(given_),
      statistics(statistics_),
      stream(stream_),
      tokens(given.batch.tokens),
      arena(given.workspace),
      buffers(arena, plan, scratch_bytes),
      log_sum_exp(buffers.log_sum_exp),
      selected(given.outputs.selected ? given.outputs.selected : buffers.selected) {
  const std::size_t bytes = to_size(tokens * plan.config.num_q_heads) * plan.accumulated;
  for (std::size_t branch = 0; given.outputs.log_sum_exp && branch < log_sum_exp.size(); ++branch)
    log_sum_exp[branch] = static_cast<std::byte*>(given.outputs.log_sum_exp) + branch * bytes;
}

void DecodeStep::run() {
  append();
  compress();
  if (plan.alone()) {
    compressed_attention(log_sum_exp[cmp]);
    select();
    DecodeTokenAttention attend = token_attention();
    attend.lse_slc = given.outputs.log_sum_exp ? log_sum_exp[slc] : nullptr;
    attend.lse_win = given.outputs.log_sum_exp ? log_sum_exp[win] : nullptr;
    attend.gate = given.inputs.gate.data;
    attend.o_cmp = buffers.o_cmp;
    attend.out = given.outputs.out.data;
    device.run(attend, stream);
  } else if (plan.holds_summaries()) {
    merge_with_replicated_summaries();
  } else {
    merge_with_sharded_summaries();
  }
}

void DecodeStep::append() {
  auto append = op<DecodeAppend>();
  append.k_cmp = given.inputs.k.cmp.data;
  append.k_slc = given.inputs.k.slc.data;
  append.k_win = given.inputs.k.win.data;
  append.v_cmp = given.inputs.v.cmp.data;
  append.v_slc = given.inputs.v.slc.data;
  append.v_win = given.inputs.v.win.data;
  append.cmp = rows(CachePart::cmp);
  append.slc = rows(CachePart::slc);
  append.win = rows(CachePart::win);
  device.run(append, stream);
}

void DecodeStep::compress() {
  auto compress = op<DecodeCompress>();
  compress.k_parameters = pointers_of(given.inputs.compress_k);
  compress.v_parameters = pointers_of(given.inputs.compress_v);
  compress.cmp = rows(CachePart::cmp);
  compress.summaries = plan.summaries(given.cache, given.batch);
  device.run(compress, stream);
}

void DecodeStep::compressed_attention(void* own_log_sum_exp) {
  auto attend = op<DecodeCompressedAttention>();
  attend.q = given.inputs.q.data;
  attend.summaries = plan.summaries(given.cache, given.batch);
  attend.out = buffers.o_cmp;
  attend.log_sum_exp = own_log_sum_exp;
  device.run(attend, stream);
}

// Selects on this rank alone, which holds all summaries, or finds its candidates.
void DecodeStep::select() {
  auto select = op<DecodeSelectBlocks>();
  select.q = given.inputs.q.data;
  select.log_sum_exp = log_sum_exp[cmp];
  select.summaries = plan.summaries(given.cache, given.batch);
  if (plan.holds_summaries()) {
    select.selected = selected;
  } else {
    select.scores = own_part(DecodeTraffic::candidates);
    select.candidates = static_cast<std::int32_t*>(own_part(DecodeTraffic::candidates, plan.scores_bytes(tokens)));
  }
  device.run(select, stream);
}

DecodeTokenAttention DecodeStep::token_attention() const {
  auto attend = op<DecodeTokenAttention>();
  attend.q = given.inputs.q.data;
  attend.slc = rows(CachePart::slc);
  attend.win = rows(CachePart::win);
  attend.selected = selected;
  return attend;
}

DecodeMergeParts DecodeStep::merge_parts() const {
  auto merge = op<DecodeMergeParts>();
  merge.ranks = plan.ranks;
  merge.gate = given.inputs.gate.data;
  merge.out = given.outputs.out.data;
  if (given.outputs.log_sum_exp) merge.all_lse_slc = log_sum_exp[slc];
  return merge;
}

// One message: the parts of the selected and the window branch.
void DecodeStep::merge_with_replicated_summaries() {
  constexpr DecodeTraffic message = DecodeTraffic::parts;
  const std::size_t outs = plan.outs_bytes(tokens), sums = plan.sums_bytes(tokens);
  compressed_attention(log_sum_exp[cmp]);
  select();
  DecodeTokenAttention attend = token_attention();
  attend.o_slc = own_part(message);
  attend.o_win = own_part(message, outs);
  attend.lse_slc = own_part(message, 2 * outs);
  attend.lse_win = own_part(message, 2 * outs + sums);
  device.run(attend, stream);
  gather(message);
  DecodeMergeParts merge = merge_parts();
  merge.o_cmp = buffers.o_cmp;
  merge.o_slc = parts(message);
  merge.o_win = parts(message, outs);
  merge.lse_slc = parts(message, 2 * outs);
  merge.lse_win = parts(message, 2 * outs + sums);
  if (given.outputs.log_sum_exp) merge.all_lse_win = log_sum_exp[win];
  device.run(merge, stream);
}

// Three messages, each of which needs the one before: an importance is a sum of probabilities over the heads of a
// group, so it needs the heads' log-sum-exps over all ranks; a selection needs all ranks' candidates.
void DecodeStep::merge_with_sharded_summaries() {
  const std::size_t outs = plan.outs_bytes(tokens), sums = plan.sums_bytes(tokens);
  void* const own_cmp = own_part(DecodeTraffic::log_sum_exps);
  void* const own_win = own_part(DecodeTraffic::log_sum_exps, sums);
  compressed_attention(own_cmp);
  DecodeTokenAttention window = token_attention();
  window.selected_branch = false;
  window.o_win = buffers.o_win;
  window.lse_win = own_win;
  device.run(window, stream);
  gather(DecodeTraffic::log_sum_exps);
  for (const Branch branch : {cmp, win}) {
    auto merge = op<DecodeMergeSums>();
    merge.ranks = plan.ranks;
    merge.parts = parts(DecodeTraffic::log_sum_exps, branch == cmp ? 0 : sums);
    merge.log_sum_exp = log_sum_exp[branch];
    device.run(merge, stream);
  }

  select();
  gather(DecodeTraffic::candidates);
  auto merge_candidates = op<DecodeMergeCandidates>();
  merge_candidates.ranks = plan.ranks;
  merge_candidates.scores = parts(DecodeTraffic::candidates);
  merge_candidates.candidates = parts(DecodeTraffic::candidates, plan.scores_bytes(tokens));
  merge_candidates.selected = selected;
  device.run(merge_candidates, stream);

  auto weigh = op<DecodeWeighParts>();
  weigh.gate = given.inputs.gate.data;
  weigh.o_cmp = buffers.o_cmp;
  weigh.o_win = buffers.o_win;
  weigh.lse_cmp = own_cmp;
  weigh.lse_win = own_win;
  weigh.all_lse_cmp = log_sum_exp[cmp];
  weigh.all_lse_win = log_sum_exp[win];
  weigh.out = own_part(DecodeTraffic::parts);
  device.run(weigh, stream);
  DecodeTokenAttention attend = token_attention();
  attend.window_branch = false;
  attend.o_slc = own_part(DecodeTraffic::parts, outs);
  attend.lse_slc = own_part(DecodeTraffic::parts, 2 * outs);
  device.run(attend, stream);
  gather(DecodeTraffic::parts);
  DecodeMergeParts merge = merge_parts();
  merge.weighted = parts(DecodeTraffic::parts);
  merge.o_slc = parts(DecodeTraffic::parts, outs);
  merge.lse_slc = parts(DecodeTraffic::parts, 2 * outs);
  device.run(merge, stream);
}

void* DecodeStep::own_part(DecodeTraffic traffic, std::size_t offset) const {
  return static_cast<std::byte*>(at(buffers.gathered, traffic)) +
         to_size(plan.rank) * plan.part_bytes(traffic, tokens) + offset;
}

RankParts DecodeStep::parts(DecodeTraffic traffic, std::size_t offset) const {
  return {static_cast<const std::byte*>(at(buffers.gathered, traffic)) + offset,
          static_cast<std::int64_t>(plan.part_bytes(traffic, tokens))};
}

void DecodeStep::gather(DecodeTraffic traffic) {
  const std::vector<std::size_t> bytes(to_size(plan.ranks), plan.part_bytes(traffic, tokens));
  communicator.recorder().set_purpose(name_of(traffic));
  communicator.all_gather(own_part(traffic), at(buffers.gathered, traffic), bytes, device, stream);
  ++statistics.messages;
  at(statistics.bytes_received, traffic) += static_cast<std::int64_t>(bytes.front()) * (plan.ranks - 1);
}

}  // namespace

void run_decode(const DecodePlan& plan, Device& device, Communicator& communicator, std::size_t scratch_bytes,
                const DecodeArguments& given, DecodeStatistics& statistics, Stream stream) {
  DecodeStep(plan, device, communicator, scratch_bytes, given, statistics, stream).run();
}

}  // namespace cpnsa
