// Each op of the backward by itself, on every rank's share; the sum over the ranks is compared with the oracle.

#include <cmath>

#include "tests/kernels/kernel_test.hpp"

namespace cpnsa::test {
namespace {

CPNSA_KERNEL_SUITE(BackwardOps);

constexpr double initial = 0.25;  // every element of a gradient before an op adds to it

// A gradient whose elements are `initial`.
DeviceBuffer started(const RankShare& share, std::int64_t elements) {
  return share.accumulated(Values(static_cast<std::size_t>(elements), initial));
}

// The sum that was added to a gradient.
Values gained(const RankShare& share, const DeviceBuffer& buffer) {
  Values values = share.accumulated_values(buffer);
  for (double& value : values) value -= initial;
  return values;
}

// The derived tolerance, plus the rounding of adding to `initial`, plus the rounding of sums of the size of the other
// gradients, because some gradients are zero in theory.
testing::AssertionResult gradient_agrees(const std::string& name, const Values& found, const Values& truth,
                                         const Values& plain, const OpCase& op_case, const BranchCase& branch) {
  const double roundoff = op_case.dtype == DType::f64 ? 0x1p-53 : 0x1p-24;
  const double of_sums = 16 * roundoff + (size_of(op_case.dtype) == 2 ? 0x1p-14 : 0);
  const double floor =
      16 * roundoff * initial * std::sqrt(static_cast<double>(truth.size())) + of_sums * norm_of(branch.truth);
  return agrees(name, found, truth, plain, backward_factor, op_case.dtype, accumulate_dtype(op_case.dtype), floor);
}

// One rank's BranchGradient of an attention op.
struct GradientInputs {
  GradientInputs(const BranchCase& branch, const RankShare& share)
      : dout(share.input(share.rows(branch.problem.dout))),
        weights(share.accumulated(share.rows(branch.weights))),
        deltas(share.accumulated(share.rows(branch.deltas))),
        log_sum_exp(share.accumulated(share.rows(branch.log_sum_exp))) {}
  BranchGradient view() const { return {dout.data(), weights.data(), deltas.data(), log_sum_exp.data()}; }
  DeviceBuffer dout, weights, deltas, log_sum_exp;
};

TEST_P(BackwardOps, CompressedAttention) {
  for_each_case([&](const OpCase& op_case) {
    const BranchCase branch(op_case, OnlyBranch::cmp);
    for_each_partition(op_case, [&](const Partition& partition) {
      Values dq(branch.truth.q.size()), dkeys(branch.dsummaries.k.size()), dvalues(branch.dsummaries.v.size());
      for (int rank = 0; rank < partition.ranks(); ++rank) {
        RankShare share(op_case, partition, rank, device());
        if (share.plan.rows == 0) continue;
        const DeviceBuffer q = share.input(share.rows(op_case.problem.inputs.q));
        const DeviceBuffer keys = share.input(op_case.truth.summaries_k),
                           values = share.input(op_case.truth.summaries_v);
        const GradientInputs gradient(branch, share);
        const DeviceBuffer own_dq =
            started(share, share.plan.rows * op_case.config().num_q_heads * op_case.config().head_dim_qk);
        const DeviceBuffer own_dkeys = started(share, static_cast<std::int64_t>(dkeys.size()));
        const DeviceBuffer own_dvalues = started(share, static_cast<std::int64_t>(dvalues.size()));
        auto arguments = share.op<CompressedAttentionBackward>();
        arguments.queries = share.queries.get();
        arguments.q = q.data();
        arguments.keys = keys.data();
        arguments.values = values.data();
        arguments.gradient = gradient.view();
        arguments.dq = own_dq.data();
        arguments.dkeys = own_dkeys.data();
        arguments.dvalues = own_dvalues.data();
        device().run(arguments, Stream{});
        share.add_rows(dq, gained(share, own_dq));
        const Values more_keys = gained(share, own_dkeys), more_values = gained(share, own_dvalues);
        for (std::size_t i = 0; i < dkeys.size(); ++i) dkeys[i] += more_keys[i];
        for (std::size_t i = 0; i < dvalues.size(); ++i) dvalues[i] += more_values[i];
      }
      ASSERT_TRUE(gradient_agrees("dq", dq, branch.truth.q, branch.plain.q, op_case, branch));
      ASSERT_TRUE(gradient_agrees("dkeys", dkeys, branch.dsummaries.k, branch.plain_dsummaries.k, op_case, branch));
      ASSERT_TRUE(gradient_agrees("dvalues", dvalues, branch.dsummaries.v, branch.plain_dsummaries.v, op_case, branch));
    });
  });
}

void check_selected_gradients(KernelTest& test, const OpCase& op_case) {
  Device& device = test.device();
  const BranchCase branch(op_case, OnlyBranch::slc);
  const Tensors& inputs = op_case.problem.inputs;
  test.for_each_partition(op_case, [&](const Partition& partition) {
    Values dq(branch.truth.q.size()), dk(branch.truth.k.slc.size()), dv(branch.truth.v.slc.size());
    for (int rank = 0; rank < partition.ranks(); ++rank) {
      RankShare share(op_case, partition, rank, device);
      if (share.plan.rows == 0) continue;
      const DeviceBuffer q = share.input(share.rows(inputs.q)), k = share.input(share.rows(inputs.k.slc)),
                         v = share.input(share.rows(inputs.v.slc));
      const DeviceBuffer table(device, share.schedule.table), selected(device, share.selected());
      const GradientInputs gradient(branch, share);
      const std::int64_t rows = share.plan.rows, kv_heads = op_case.config().num_kv_heads;
      const DeviceBuffer own_dq = started(share, rows * op_case.config().num_q_heads * op_case.config().head_dim_qk);
      const DeviceBuffer own_dk = started(share, rows * kv_heads * op_case.config().head_dim_qk);
      const DeviceBuffer own_dv = started(share, rows * kv_heads * op_case.config().head_dim_v);
      for (const planning::ExchangeRound& round : share.schedule.rounds) {
        const Values content = share.pool(round, inputs.k.slc, inputs.v.slc);
        const DeviceBuffer pool = share.input(content);
        const DeviceBuffer dpool = started(share, static_cast<std::int64_t>(content.size()));
        auto arguments = share.op<SelectedAttentionBackward>();
        arguments.queries = share.queries.get();
        arguments.q = q.data();
        arguments.k = k.data();
        arguments.v = v.data();
        arguments.pool = pool.data();
        arguments.pool_slots = round.received;
        arguments.table = static_cast<const BlockLocation*>(table.data());
        arguments.selected = static_cast<const std::int32_t*>(selected.data());
        arguments.group_begin = round.group_begin;
        arguments.group_end = round.group_end;
        arguments.gradient = gradient.view();
        arguments.dq = own_dq.data();
        arguments.dk = own_dk.data();
        arguments.dv = own_dv.data();
        arguments.dpool = dpool.data();
        device.run(arguments, Stream{});
        share.add_pool(dk, dv, round, gained(share, dpool));
      }
      share.add_rows(dq, gained(share, own_dq));
      share.add_rows(dk, gained(share, own_dk));
      share.add_rows(dv, gained(share, own_dv));
    }
    ASSERT_TRUE(gradient_agrees("dq", dq, branch.truth.q, branch.plain.q, op_case, branch));
    ASSERT_TRUE(gradient_agrees("dk", dk, branch.truth.k.slc, branch.plain.k.slc, op_case, branch));
    ASSERT_TRUE(gradient_agrees("dv", dv, branch.truth.v.slc, branch.plain.v.slc, op_case, branch));
  });
}

TEST_P(BackwardOps, SelectedAttention) {
  for_each_case([&](const OpCase& op_case) { check_selected_gradients(*this, op_case); });
}

TEST_P(BackwardOps, SelectedAttentionOfLongLists) {
  with_many_blocks([&](const OpCase& op_case) { check_selected_gradients(*this, op_case); });
}

TEST_P(BackwardOps, SelectedAttentionOfManyShapes) {
  for_each_selection_shape([&](const OpCase& op_case) { check_selected_gradients(*this, op_case); }, BlockSizes::other);
}

void check_window(const OpCase& op_case, const BranchCase& branch, const Partition& partition, Device& device) {
  const Tensors& inputs = op_case.problem.inputs;
  Values dq(branch.truth.q.size()), dk(branch.truth.k.win.size()), dv(branch.truth.v.win.size());
  for (int rank = 0; rank < partition.ranks(); ++rank) {
    RankShare share(op_case, partition, rank, device);
    if (share.plan.rows == 0) continue;
    const planning::RankHalo& halo = share.plan.window_halo;
    const DeviceBuffer q = share.input(share.rows(inputs.q)), k = share.input(share.rows(inputs.k.win)),
                       v = share.input(share.rows(inputs.v.win));
    const DeviceBuffer halo_k = share.input(share.halo(halo, inputs.k.win)),
                       halo_v = share.input(share.halo(halo, inputs.v.win));
    const GradientInputs gradient(branch, share);
    const std::int64_t rows = share.plan.rows, kv_heads = op_case.config().num_kv_heads;
    const DeviceBuffer own_dq = started(share, rows * op_case.config().num_q_heads * op_case.config().head_dim_qk);
    const DeviceBuffer own_dk = started(share, rows * kv_heads * op_case.config().head_dim_qk);
    const DeviceBuffer own_dv = started(share, rows * kv_heads * op_case.config().head_dim_v);
    const DeviceBuffer dhalo_k = started(share, halo.rows * kv_heads * op_case.config().head_dim_qk);
    const DeviceBuffer dhalo_v = started(share, halo.rows * kv_heads * op_case.config().head_dim_v);
    auto arguments = share.op<WindowAttentionBackward>();
    arguments.queries = share.queries.get();
    arguments.q = q.data();
    arguments.k = k.data();
    arguments.v = v.data();
    arguments.halo_k = halo_k.data();
    arguments.halo_v = halo_v.data();
    arguments.gradient = gradient.view();
    arguments.dq = own_dq.data();
    arguments.dk = own_dk.data();
    arguments.dv = own_dv.data();
    arguments.dhalo_k = dhalo_k.data();
    arguments.dhalo_v = dhalo_v.data();
    device.run(arguments, Stream{});
    share.add_rows(dq, gained(share, own_dq));
    share.add_rows(dk, gained(share, own_dk));
    share.add_rows(dv, gained(share, own_dv));
    share.add_halo(dk, halo, gained(share, dhalo_k));
    share.add_halo(dv, halo, gained(share, dhalo_v));
  }
  ASSERT_TRUE(gradient_agrees("dq", dq, branch.truth.q, branch.plain.q, op_case, branch));
  ASSERT_TRUE(gradient_agrees("dk", dk, branch.truth.k.win, branch.plain.k.win, op_case, branch));
  ASSERT_TRUE(gradient_agrees("dv", dv, branch.truth.v.win, branch.plain.v.win, op_case, branch));
}

TEST_P(BackwardOps, WindowAttention) {
  for_each_case([&](const OpCase& op_case) {
    const BranchCase branch(op_case, OnlyBranch::win);
    for_each_partition(op_case,
                       [&](const Partition& partition) { check_window(op_case, branch, partition, device()); });
  });
}

// A segment with 196 tokens of halo: of the first 64 tokens that a tile of queries reads, only four queries see any,
// the last four; the other queries see none before the next tile of tokens.
TEST_P(BackwardOps, AWindowWhoseFirstTokensFewQueriesSee) {
  Config config;
  config.num_q_heads = 16, config.num_kv_heads = 1;
  config.head_dim_qk = config.head_dim_v = 128;
  config.select_count = 4;
  config.window = 197;
  config.compress_hidden_k = config.compress_hidden_v = 64;
  const DType dtype = DType::bf16;
  if (!supported(config, dtype)) return;
  const OpCase op_case(make_problem(config, {0, 640}, 700, {.shared_k = false, .shared_v = false}), dtype);
  std::vector<std::vector<TokenRange>> turns(2);
  for (std::int64_t begin = 0; begin < 640; begin += 64)
    turns[static_cast<std::size_t>(begin / 64 % 2)].push_back({begin, begin + 64});
  check_window(op_case, BranchCase(op_case, OnlyBranch::win),
               Partition::custom(op_case.problem.cu_seqlens, config.select_block, std::move(turns)), device());
}

// The gradients of a compressor's input rows and parameters, for keys or values, summed over the ranks.
struct CompressGradients {
  Values rows;
  CompressorSet<Values> parameters;
};

CompressGradients compress_backward(const OpCase& op_case, const BranchCase& branch, const Partition& partition,
                                    bool keys, Device& device) {
  const Config& config = op_case.config();
  const Values& input = keys ? op_case.problem.inputs.k.cmp : op_case.problem.inputs.v.cmp;
  const CompressorSet<Values>& parameters =
      keys ? op_case.problem.inputs.compress_k : op_case.problem.inputs.compress_v;
  CompressGradients total;
  total.rows.resize(input.size());
  schema::for_each_compressor_member([](auto, Values& sum, const Values& values) { sum.resize(values.size()); },
                                     total.parameters, parameters);
  for (int rank = 0; rank < partition.ranks(); ++rank) {
    RankShare share(op_case, partition, rank, device);
    const DeviceBuffer dsummaries = share.accumulated(keys ? branch.dsummaries.k : branch.dsummaries.v);
    CompressorSet<DeviceBuffer> given, gradients;
    schema::for_each_compressor_member(
        [&](auto, DeviceBuffer& in, DeviceBuffer& out, const Values& values) {
          if (values.empty()) return;
          in = share.input(values);
          out = started(share, static_cast<std::int64_t>(values.size()));
        },
        given, gradients, parameters);
    const auto run = [&](const Values& rows, const std::vector<SummaryRun>& runs) {
      const DeviceBuffer in = share.input(rows), out = started(share, static_cast<std::int64_t>(rows.size()));
      const DeviceListBuffer<SummaryRun> list(device, runs);
      auto arguments = share.op<CompressBackward>();
      arguments.dim = keys ? config.head_dim_qk : config.head_dim_v;
      arguments.hidden = keys ? config.compress_hidden_k : config.compress_hidden_v;
      arguments.input = in.data();
      schema::for_each_compressor_member([](auto, const void*& to, const DeviceBuffer& from) { to = from.data(); },
                                         arguments.parameters, given);
      arguments.dsummaries = dsummaries.data();
      arguments.dinput = out.data();
      schema::for_each_compressor_member([](auto, void*& to, const DeviceBuffer& from) { to = from.data(); },
                                         arguments.dparameters, gradients);
      arguments.runs = list.view();
      if (!runs.empty()) device.run(arguments, Stream{});
      return gained(share, out);
    };
    share.add_rows(total.rows, run(share.rows(input), share.plan.own_runs));
    share.add_halo(total.rows, share.plan.summary_halo,
                   run(share.halo(share.plan.summary_halo, input), share.plan.halo_runs));
    schema::for_each_compressor_member(
        [&](auto, Values& sum, const DeviceBuffer& buffer) {
          if (sum.empty()) return;
          const Values more = gained(share, buffer);
          for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += more[i];
        },
        total.parameters, gradients);
  }
  return total;
}

TEST_P(BackwardOps, Compress) {
  for_each_case(
      [&](const OpCase& op_case) {
        const BranchCase branch(op_case, OnlyBranch::cmp);
        for_each_partition(op_case, [&](const Partition& partition) {
          for (const bool keys : {true, false}) {
            const CompressGradients found = compress_backward(op_case, branch, partition, keys, device());
            const Values& rows = keys ? branch.truth.k.cmp : branch.truth.v.cmp;
            const Values& plain_rows = keys ? branch.plain.k.cmp : branch.plain.v.cmp;
            const std::string side = keys ? "keys' " : "values' ";
            ASSERT_TRUE(gradient_agrees(side + "rows", found.rows, rows, plain_rows, op_case, branch));
            schema::for_each_compressor_member(
                [&](std::size_t i, const Values& gradient, const Values& truth, const Values& plain) {
                  EXPECT_TRUE(gradient_agrees(side + schema::key_parameters[i].name.str(), gradient, truth, plain,
                                              op_case, branch));
                },
                found.parameters, keys ? branch.truth.compress_k : branch.truth.compress_v,
                keys ? branch.plain.compress_k : branch.plain.compress_v);
          }
        });
      },
      Also::many_summaries);
}

TEST_P(BackwardOps, CombineBranches) {
  for_each_case([&](const OpCase& op_case) {
    RankShare share(op_case, make_partition(PartitionKind::contiguous, op_case.problem, 1), 0, device());
    const std::array<Values, 3> outs{round_to(op_case.dtype, op_case.truth.o_cmp),
                                     round_to(op_case.dtype, op_case.truth.o_slc),
                                     round_to(op_case.dtype, op_case.truth.o_win)};
    const DeviceBuffer gate = share.input(op_case.problem.inputs.gate), o_cmp = share.input(outs[0]),
                       o_slc = share.input(outs[1]), o_win = share.input(outs[2]),
                       dout = share.input(op_case.problem.dout);
    const std::int64_t count = share.plan.rows * op_case.config().num_q_heads;
    const DeviceBuffer dgate = share.accumulated_output(count, 3), weights = share.accumulated_output(count, 3),
                       deltas = share.accumulated_output(count, 3);
    auto arguments = share.op<CombineBranchesBackward>();
    arguments.rows = share.plan.rows;
    arguments.gate = gate.data();
    arguments.o_cmp = o_cmp.data();
    arguments.o_slc = o_slc.data();
    arguments.o_win = o_win.data();
    arguments.dout = dout.data();
    arguments.dgate = dgate.data();
    arguments.weights = weights.data();
    arguments.deltas = deltas.data();
    device().run(arguments, Stream{});

    Values expected_dgate, expected_weights(static_cast<std::size_t>(3 * count)), expected_deltas(expected_weights);
    const auto d_v = static_cast<std::size_t>(op_case.config().head_dim_v);
    for (std::size_t row = 0; row < static_cast<std::size_t>(count); ++row)
      for (std::size_t branch = 0; branch < 3; ++branch) {
        const bool logits = op_case.config().gate == GateKind::logits;
        const double value = op_case.problem.inputs.gate[3 * row + branch];
        const double weight = logits ? 1 / (1 + std::exp(-value)) : value;
        double product = 0;
        for (std::size_t c = 0; c < d_v; ++c)
          product += op_case.problem.dout[row * d_v + c] * outs[branch][row * d_v + c];
        expected_dgate.push_back(product * (logits ? weight * (1 - weight) : 1));
        expected_weights[branch * static_cast<std::size_t>(count) + row] = weight;
        expected_deltas[branch * static_cast<std::size_t>(count) + row] = weight * product;
      }
    const double tolerance = (op_case.dtype == DType::f64 ? 0x1p-53 : 0x1p-24) * 16;
    ASSERT_TRUE(within("dgate", share.accumulated_values(dgate), expected_dgate, tolerance));
    ASSERT_TRUE(within("weights", share.accumulated_values(weights), expected_weights, tolerance));
    ASSERT_TRUE(within("deltas", share.accumulated_values(deltas), expected_deltas, tolerance));
  });
}

}  // namespace
}  // namespace cpnsa::test
