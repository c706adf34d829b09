// Each forward stage alone, on every rank's share, against the oracle.

#include <algorithm>
#include <cmath>
#include <functional>

#include "tests/kernels/kernel_test.hpp"

namespace cpnsa::test {
namespace {

CPNSA_KERNEL_SUITE(ForwardStages);

class Compressed {
 public:
  Compressed(const StageCase& stage, Device& device) : stage_(stage), device_(device) {}

  // All summaries, each from the rank that computes it.
  Values summaries(const Partition& partition, bool keys) {
    const Config& config = stage_.config();
    const std::int64_t dim = keys ? config.head_dim_qk : config.head_dim_v, width = config.num_kv_heads * dim;
    Values all;
    for (int rank = 0; rank < partition.ranks(); ++rank) {
      RankShare share(stage_, partition, rank, device_);
      const Values& input = keys ? stage_.problem.inputs.k.cmp : stage_.problem.inputs.v.cmp;
      const DeviceBuffer rows = share.input(share.rows(input));
      const DeviceBuffer halo = share.input(share.halo(share.plan.summary_halo, input));
      const DeviceBuffer out = share.output(share.plan.layout.summaries, width);
      run(share, keys, rows, share.plan.own_runs, out);
      run(share, keys, halo, share.plan.halo_runs, out);
      const Values found = share.values(out);
      all.resize(found.size());
      for (const auto* runs : {&share.plan.own_runs, &share.plan.halo_runs})
        for (const SummaryRun& run : *runs)
          std::copy_n(found.begin() + run.summary * width, run.count * width, all.begin() + run.summary * width);
    }
    return all;
  }

 private:
  void run(RankShare& share, bool keys, const DeviceBuffer& input, const std::vector<SummaryRun>& runs,
           const DeviceBuffer& out) {
    if (runs.empty()) return;
    const Config& config = stage_.config();
    const auto& parameters = keys ? stage_.problem.inputs.compress_k : stage_.problem.inputs.compress_v;
    const auto given = [&](const Values& values) { return values.empty() ? DeviceBuffer() : share.input(values); };
    const DeviceBuffer pos = given(parameters.pos), weight = given(parameters.weight), w1 = given(parameters.w1),
                       b1 = given(parameters.b1), w2 = given(parameters.w2), b2 = given(parameters.b2);
    const DeviceListBuffer<SummaryRun> list(device_, runs);
    auto compress = share.arguments<Compress>();
    compress.dim = keys ? config.head_dim_qk : config.head_dim_v;
    compress.hidden = keys ? config.compress_hidden_k : config.compress_hidden_v;
    compress.input = input.data();
    compress.parameters = {pos.data(), weight.data(), w1.data(), b1.data(), w2.data(), b2.data()};
    compress.summaries = out.data();
    compress.runs = list.view();
    device_.run(compress, Stream{});
    device_.synchronize(Stream{});
  }

  const StageCase& stage_;
  Device& device_;
};

TEST_P(ForwardStages, Compress) {
  for_each_case(
      [&](const StageCase& stage) {
        Compressed compressed(stage, device());
        for (const bool keys : {true, false}) {
          const Partition whole = make_partition(PartitionKind::contiguous, stage.problem, 1);
          const Values expected = compressed.summaries(whole, keys);
          ASSERT_TRUE(agrees(
              keys ? "keys" : "values", expected, keys ? stage.truth.summaries_k : stage.truth.summaries_v,
              keys ? stage.plain.summaries_k : stage.plain.summaries_v, forward_factor, stage.dtype, stage.dtype));
          for_each_partition(stage, [&](const Partition& partition) {
            ASSERT_EQ(compressed.summaries(partition, keys), expected) << "a summary depends on where it is computed";
          });
        }
      },
      Also::many_summaries);
}

// Outputs of an attention stage on all ranks, packed.
struct Attended {
  explicit Attended(const StageCase& stage) : out(stage.truth.out.size()), log_sum_exp(stage.truth.lse_cmp.size()) {}
  void add(const RankShare& share, const DeviceBuffer& out_buffer, const DeviceBuffer& lse_buffer) {
    share.add_rows(out, share.values(out_buffer));
    share.add_rows(log_sum_exp, share.accumulated_values(lse_buffer));
  }
  Values out, log_sum_exp;
};

struct AttentionOutputs {
  AttentionOutputs(const StageCase& stage, const RankShare& share)
      : out(share.output(share.plan.rows, stage.config().num_q_heads * stage.config().head_dim_v)),
        log_sum_exp(share.accumulated_output(share.plan.rows, stage.config().num_q_heads)) {}
  DeviceBuffer out, log_sum_exp;
};

TEST_P(ForwardStages, CompressedAttention) {
  const auto check = [&](const StageCase& stage) {
    for_each_partition(stage, [&](const Partition& partition) {
      Attended attended(stage);
      for (int rank = 0; rank < partition.ranks(); ++rank) {
        RankShare share(stage, partition, rank, device());
        if (share.plan.rows == 0) continue;
        const DeviceBuffer q = share.input(share.rows(stage.problem.inputs.q));
        const DeviceBuffer keys = share.input(stage.truth.summaries_k), values = share.input(stage.truth.summaries_v);
        const AttentionOutputs outputs(stage, share);
        auto arguments = share.arguments<CompressedAttention>();
        arguments.queries = share.queries.get();
        arguments.q = q.data();
        arguments.keys = keys.data();
        arguments.values = values.data();
        arguments.out = outputs.out.data();
        arguments.log_sum_exp = outputs.log_sum_exp.data();
        device().run(arguments, Stream{});
        attended.add(share, outputs.out, outputs.log_sum_exp);
      }
      ASSERT_TRUE(
          agrees("out", attended.out, stage.truth.o_cmp, stage.plain.o_cmp, forward_factor, stage.dtype, stage.dtype));
      ASSERT_TRUE(log_sum_exp_agrees(attended.log_sum_exp, stage.truth.lse_cmp, stage.plain.lse_cmp, stage.dtype));
    });
  };
  for_each_case(check, Also::steep_scores);
}

// [T, G, n] of all ranks.
std::vector<std::int32_t> select_blocks(const StageCase& stage, const Partition& partition, Device& device) {
  const std::int64_t places = stage.config().num_kv_heads * stage.config().select_count;
  std::vector<std::int32_t> all(stage.truth.selected.size());
  for (int rank = 0; rank < partition.ranks(); ++rank) {
    RankShare share(stage, partition, rank, device);
    if (share.plan.rows == 0) continue;
    const DeviceBuffer q = share.input(share.rows(stage.problem.inputs.q));
    const DeviceBuffer keys = share.input(stage.truth.summaries_k);
    const DeviceBuffer lse = share.accumulated(share.rows(stage.truth.lse_cmp));
    const DeviceBuffer selected = poisoned_indices(device, share.plan.rows * places);
    auto arguments = share.arguments<SelectBlocks>();
    arguments.queries = share.queries.get();
    arguments.q = q.data();
    arguments.keys = keys.data();
    arguments.log_sum_exp = lse.data();
    arguments.selected = static_cast<std::int32_t*>(selected.data());
    device.run(arguments, Stream{});
    partition.gather(selected.indices().data(), all.data(), rank, static_cast<std::size_t>(places) * 4);
  }
  return all;
}

TEST_P(ForwardStages, SelectBlocks) {
  const auto check = [&](const StageCase& stage) {
    std::vector<std::int32_t> expected;
    for_each_partition(stage, [&](const Partition& partition) {
      const std::vector<std::int32_t> all = select_blocks(stage, partition, device());
      if (expected.empty()) {
        expected = all;
        ASSERT_TRUE(Truth(stage.problem, stage.dtype, all).selection_is_right());
      }
      ASSERT_EQ(all, expected) << "a selection depends on where it is made";
    });
  };
  for_each_case(check, GetParam().selects_in_turns ? Also::long_documents : Also::nothing);
}

// Blocks of nine kinds: of those that tie, one kind's, the lower ones are taken, in turns of 32 blocks and across them;
// which kind is best depends on the query. A query that is not a number makes all of its blocks tie.
TEST_P(ForwardStages, SelectBlocksOfEqualScores) {
  Config config;
  config.num_q_heads = 16, config.num_kv_heads = 1;
  config.head_dim_qk = config.head_dim_v = 64;
  config.select_count = 10;
  config.window = 16;
  config.compressor = Compressor::mean;
  constexpr std::int64_t tokens = 3300, not_numbers[] = {1000, 3290};
  Problem problem = make_problem(config, {0, tokens}, 604, {.shared_k = false, .shared_v = false});
  std::vector<std::int64_t> kinds;
  for (Random random(605); kinds.size() * config.select_block < tokens;) kinds.push_back(random.integer(0, 8));
  // A block's middle is its kind's, the rest all blocks': so are the summaries that lie in two blocks.
  Values& keys = problem.inputs.k.cmp;
  const Values given = keys;
  for (std::int64_t token = 0; token < tokens; ++token) {
    const std::int64_t at = token % config.select_block,
                       kind = kinds[static_cast<std::size_t>(token / config.select_block)];
    const std::int64_t source = at < 16 || at >= 48 ? at : kind * config.select_block + at;
    std::copy_n(given.begin() + source * config.head_dim_qk, config.head_dim_qk,
                keys.begin() + token * config.head_dim_qk);
  }
  for (const std::int64_t row : not_numbers)
    problem.inputs.q[static_cast<std::size_t>((row * config.num_q_heads + 3) * config.head_dim_qk)] = std::nan("");
  ASSERT_TRUE(supported(config, DType::bf16));
  const StageCase stage(problem, DType::bf16);
  std::vector<std::int32_t> expected;
  for_each_partition(stage, [&](const Partition& partition) {
    const std::vector<std::int32_t> all = select_blocks(stage, partition, device());
    if (expected.empty()) expected = all;
    ASSERT_EQ(all, expected) << "a selection depends on where it is made";
  });
  const auto of_row = [&](const std::vector<std::int32_t>& selected, std::int64_t row) {
    const auto first = selected.begin() + row * config.select_count;
    return std::vector<std::int32_t>(first, first + config.select_count);
  };
  for (const std::int64_t row : not_numbers) ASSERT_EQ(of_row(expected, row), of_row(stage.truth.selected, row));
  for (std::int64_t row = config.select_block * config.select_count; row < tokens; ++row) {
    const std::vector<std::int32_t> selected = of_row(expected, row);
    const std::int64_t last = row / config.select_block;
    ASSERT_TRUE(std::adjacent_find(selected.begin(), selected.end(), std::greater_equal()) == selected.end())
        << "row " << row << ": " << testing::PrintToString(selected);
    ASSERT_EQ(selected.back(), last) << "row " << row;
    bool passed_over[9] = {};  // a block of the kind
    for (std::int64_t block = config.init_blocks; block <= last - config.local_blocks; ++block) {
      bool& lower_is_left = passed_over[kinds[static_cast<std::size_t>(block)]];
      const bool is_taken = std::count(selected.begin(), selected.end(), block) == 1;
      ASSERT_FALSE(is_taken && lower_is_left) << "row " << row << " has block " << block << ", not a lower equal one";
      lower_is_left |= !is_taken;
    }
  }
}

TEST_P(ForwardStages, MarkDemand) {
  for_each_case([&](const StageCase& stage) {
    const Config& config = stage.config();
    for_each_partition(stage, [&](const Partition& partition) {
      for (int rank = 0; rank < partition.ranks(); ++rank) {
        RankShare share(stage, partition, rank, device());
        const planning::Layout& layout = share.plan.layout;
        std::vector<std::int32_t> expected(
            static_cast<std::size_t>(planning::DemandMatrix::words_of(layout.blocks, config.num_kv_heads)));
        for (const Segment& segment : share.plan.segments)
          for (std::int64_t row = segment.row; row < segment.row + segment.rows; ++row)
            for (std::int64_t at = 0; at < config.num_kv_heads * config.select_count; ++at) {
              const std::int32_t block =
                  share.selected()[static_cast<std::size_t>(row * config.num_kv_heads * config.select_count + at)];
              if (block < 0) continue;
              const std::int64_t bit = (segment.block + block) * config.num_kv_heads + at / config.select_count;
              expected[static_cast<std::size_t>(bit / 32)] |= static_cast<std::int32_t>(1u << bit % 32);
            }
        if (share.plan.rows == 0) continue;
        const DeviceBuffer selected(device(), share.selected());
        DeviceBuffer bitmap(device(), expected.size() * 4);
        bitmap.fill(0);
        auto arguments = share.arguments<MarkDemand>();
        arguments.queries = share.queries.get();
        arguments.selected = static_cast<const std::int32_t*>(selected.data());
        arguments.bitmap = static_cast<std::uint32_t*>(bitmap.data());
        device().run(arguments, Stream{});
        ASSERT_EQ(bitmap.indices(), expected);
      }
    });
  });
}

// Of one rank, all rounds; `out` may be null with `combine`.
void attend_selected(const StageCase& stage, RankShare& share, Device& device, void* out, void* log_sum_exp,
                     const CombineBranches* combine) {
  const Tensors& inputs = stage.problem.inputs;
  const DeviceBuffer q = share.input(share.rows(inputs.q)), k = share.input(share.rows(inputs.k.slc)),
                     v = share.input(share.rows(inputs.v.slc));
  const DeviceBuffer table(device, share.schedule.table), selected(device, share.selected());
  for (const planning::ExchangeRound& round : share.schedule.rounds) {
    const DeviceBuffer pool = share.input(share.pool(round, inputs.k.slc, inputs.v.slc));
    auto arguments = share.arguments<SelectedAttention>();
    arguments.queries = share.queries.get();
    arguments.q = q.data();
    arguments.k = k.data();
    arguments.v = v.data();
    arguments.pool = pool.data();
    arguments.table = static_cast<const BlockLocation*>(table.data());
    arguments.selected = static_cast<const std::int32_t*>(selected.data());
    arguments.group_begin = round.head_begin;
    arguments.group_end = round.head_end;
    arguments.out = out;
    arguments.log_sum_exp = log_sum_exp;
    arguments.combine = combine;
    device.run(arguments, Stream{});
    device.synchronize(Stream{});
  }
}

// Alone, and on devices whose selected branch can also be the gate as that, without an output of its own.
TEST_P(ForwardStages, SelectedAttention) {
  const auto check = [&](const StageCase& stage) {
    for_each_partition(stage, [&](const Partition& partition) {
      Attended attended(stage), gated(stage);
      bool combines = false;
      for (int rank = 0; rank < partition.ranks(); ++rank) {
        RankShare share(stage, partition, rank, device());
        if (share.plan.rows == 0) continue;
        const AttentionOutputs outputs(stage, share);
        attend_selected(stage, share, device(), outputs.out.data(), outputs.log_sum_exp.data(), nullptr);
        attended.add(share, outputs.out, outputs.log_sum_exp);

        combines = device().combines_selected(stage.config(), stage.dtype, *share.queries);
        if (!combines) continue;
        const DeviceBuffer gate = share.input(share.rows(stage.problem.inputs.gate)),
                           o_cmp = share.input(share.rows(stage.truth.o_cmp)),
                           o_win = share.input(share.rows(stage.truth.o_win));
        const AttentionOutputs of_gate(stage, share);
        auto combine = share.arguments<CombineBranches>();
        combine.rows = share.plan.rows;
        combine.gate = gate.data();
        combine.o_cmp = o_cmp.data();
        combine.o_win = o_win.data();
        combine.out = of_gate.out.data();
        attend_selected(stage, share, device(), nullptr, of_gate.log_sum_exp.data(), &combine);
        gated.add(share, of_gate.out, of_gate.log_sum_exp);
      }
      ASSERT_TRUE(
          agrees("out", attended.out, stage.truth.o_slc, stage.plain.o_slc, forward_factor, stage.dtype, stage.dtype));
      ASSERT_TRUE(log_sum_exp_agrees(attended.log_sum_exp, stage.truth.lse_slc, stage.plain.lse_slc, stage.dtype));
      if (!combines) return;
      ASSERT_TRUE(
          agrees("gated", gated.out, stage.truth.out, stage.plain.out, forward_factor, stage.dtype, stage.dtype));
      ASSERT_EQ(gated.log_sum_exp, attended.log_sum_exp);
    });
  };
  for_each_case(check, Also::steep_scores);
}

TEST_P(ForwardStages, WindowAttention) {
  const auto check = [&](const StageCase& stage) {
    const Tensors& inputs = stage.problem.inputs;
    for_each_partition(stage, [&](const Partition& partition) {
      Attended attended(stage);
      for (int rank = 0; rank < partition.ranks(); ++rank) {
        RankShare share(stage, partition, rank, device());
        if (share.plan.rows == 0) continue;
        const DeviceBuffer q = share.input(share.rows(inputs.q)), k = share.input(share.rows(inputs.k.win)),
                           v = share.input(share.rows(inputs.v.win));
        const DeviceBuffer halo_k = share.input(share.halo(share.plan.window_halo, inputs.k.win)),
                           halo_v = share.input(share.halo(share.plan.window_halo, inputs.v.win));
        const AttentionOutputs outputs(stage, share);
        auto arguments = share.arguments<WindowAttention>();
        arguments.queries = share.queries.get();
        arguments.q = q.data();
        arguments.k = k.data();
        arguments.v = v.data();
        arguments.halo_k = halo_k.data();
        arguments.halo_v = halo_v.data();
        arguments.out = outputs.out.data();
        arguments.log_sum_exp = outputs.log_sum_exp.data();
        device().run(arguments, Stream{});
        attended.add(share, outputs.out, outputs.log_sum_exp);
      }
      ASSERT_TRUE(
          agrees("out", attended.out, stage.truth.o_win, stage.plain.o_win, forward_factor, stage.dtype, stage.dtype));
      ASSERT_TRUE(log_sum_exp_agrees(attended.log_sum_exp, stage.truth.lse_win, stage.plain.lse_win, stage.dtype));
    });
  };
  for_each_case(check, Also::steep_scores);
}

TEST_P(ForwardStages, CombineBranches) {
  for_each_case([&](const StageCase& stage) {
    RankShare share(stage, make_partition(PartitionKind::contiguous, stage.problem, 1), 0, device());
    const DeviceBuffer gate = share.input(stage.problem.inputs.gate), o_cmp = share.input(stage.truth.o_cmp),
                       o_slc = share.input(stage.truth.o_slc), o_win = share.input(stage.truth.o_win);
    const AttentionOutputs outputs(stage, share);
    auto arguments = share.arguments<CombineBranches>();
    arguments.rows = share.plan.rows;
    arguments.gate = gate.data();
    arguments.o_cmp = o_cmp.data();
    arguments.o_slc = o_slc.data();
    arguments.o_win = o_win.data();
    arguments.out = outputs.out.data();
    device().run(arguments, Stream{});
    ASSERT_TRUE(agrees("out", share.values(outputs.out), stage.truth.out, stage.plain.out, forward_factor, stage.dtype,
                       stage.dtype));
  });
}

}  // namespace
}  // namespace cpnsa::test
