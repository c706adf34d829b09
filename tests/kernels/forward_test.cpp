// Each op of the forward by itself, on every rank's share, compared with the oracle.

#include <algorithm>
#include <cmath>
#include <functional>

#include "tests/kernels/kernel_test.hpp"

namespace cpnsa::test {
namespace {

CPNSA_KERNEL_SUITE(ForwardOps);

class Compressed {
 public:
  Compressed(const OpCase& op_case, Device& device) : op_case_(op_case), device_(device) {}

  // The summaries of all ranks, each from the rank that computes it.
  Values summaries(const Partition& partition, bool keys) {
    const Config& config = op_case_.config();
    const std::int64_t dim = keys ? config.head_dim_qk : config.head_dim_v, width = config.num_kv_heads * dim;
    Values all;
    for (int rank = 0; rank < partition.ranks(); ++rank) {
      RankShare share(op_case_, partition, rank, device_);
      const Values& input = keys ? op_case_.problem.inputs.k.cmp : op_case_.problem.inputs.v.cmp;
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
    const Config& config = op_case_.config();
    const auto& parameters = keys ? op_case_.problem.inputs.compress_k : op_case_.problem.inputs.compress_v;
    CompressorSet<DeviceBuffer> given;
    const DeviceListBuffer<SummaryRun> list(device_, runs);
    auto compress = share.op<Compress>();
    compress.dim = keys ? config.head_dim_qk : config.head_dim_v;
    compress.hidden = keys ? config.compress_hidden_k : config.compress_hidden_v;
    compress.input = input.data();
    schema::for_each_compressor_member(
        [&](auto, const void*& pointer, DeviceBuffer& buffer, const Values& values) {
          if (values.empty()) return;
          buffer = share.input(values);
          pointer = buffer.data();
        },
        compress.parameters, given, parameters);
    compress.summaries = out.data();
    compress.runs = list.view();
    device_.run(compress, Stream{});
    device_.synchronize(Stream{});
  }

  const OpCase& op_case_;
  Device& device_;
};

TEST_P(ForwardOps, Compress) {
  for_each_case(
      [&](const OpCase& op_case) {
        Compressed compressed(op_case, device());
        for (const bool keys : {true, false}) {
          const Partition whole = make_partition(PartitionKind::contiguous, op_case.problem, 1);
          const Values expected = compressed.summaries(whole, keys);
          ASSERT_TRUE(agrees(keys ? "keys" : "values", expected,
                             keys ? op_case.truth.summaries_k : op_case.truth.summaries_v,
                             keys ? op_case.plain.summaries_k : op_case.plain.summaries_v, forward_factor,
                             op_case.dtype, op_case.dtype));
          for_each_partition(op_case, [&](const Partition& partition) {
            ASSERT_EQ(compressed.summaries(partition, keys), expected) << "a summary depends on where it is computed";
          });
        }
      },
      Also::many_summaries);
}

// The outputs of an attention op on all ranks, packed.
struct Attended {
  explicit Attended(const OpCase& op_case) : out(op_case.truth.out.size()), log_sum_exp(op_case.truth.lse_cmp.size()) {}
  void add(const RankShare& share, const DeviceBuffer& out_buffer, const DeviceBuffer& lse_buffer) {
    share.add_rows(out, share.values(out_buffer));
    share.add_rows(log_sum_exp, share.accumulated_values(lse_buffer));
  }
  Values out, log_sum_exp;
};

struct AttentionOutputs {
  AttentionOutputs(const OpCase& op_case, const RankShare& share)
      : out(share.output(share.plan.rows, op_case.config().num_q_heads * op_case.config().head_dim_v)),
        log_sum_exp(share.accumulated_output(share.plan.rows, op_case.config().num_q_heads)) {}
  DeviceBuffer out, log_sum_exp;
};

TEST_P(ForwardOps, CompressedAttention) {
  const auto check = [&](const OpCase& op_case) {
    for_each_partition(op_case, [&](const Partition& partition) {
      Attended attended(op_case);
      for (int rank = 0; rank < partition.ranks(); ++rank) {
        RankShare share(op_case, partition, rank, device());
        if (share.plan.rows == 0) continue;
        const DeviceBuffer q = share.input(share.rows(op_case.problem.inputs.q));
        const DeviceBuffer keys = share.input(op_case.truth.summaries_k),
                           values = share.input(op_case.truth.summaries_v);
        const AttentionOutputs outputs(op_case, share);
        auto arguments = share.op<CompressedAttention>();
        arguments.queries = share.queries.get();
        arguments.q = q.data();
        arguments.keys = keys.data();
        arguments.values = values.data();
        arguments.out = outputs.out.data();
        arguments.log_sum_exp = outputs.log_sum_exp.data();
        device().run(arguments, Stream{});
        attended.add(share, outputs.out, outputs.log_sum_exp);
      }
      ASSERT_TRUE(agrees("out", attended.out, op_case.truth.o_cmp, op_case.plain.o_cmp, forward_factor, op_case.dtype,
                         op_case.dtype));
      ASSERT_TRUE(
          log_sum_exp_agrees(attended.log_sum_exp, op_case.truth.lse_cmp, op_case.plain.lse_cmp, op_case.dtype));
    });
  };
  for_each_case(check, Also::steep_scores);
}

// The selected blocks [T, G, n] of all ranks, packed.
std::vector<std::int32_t> select_blocks(const OpCase& op_case, const Partition& partition, Device& device) {
  const std::int64_t width = op_case.config().num_kv_heads * op_case.config().select_count;
  std::vector<std::int32_t> all(op_case.truth.selected.size());
  for (int rank = 0; rank < partition.ranks(); ++rank) {
    RankShare share(op_case, partition, rank, device);
    if (share.plan.rows == 0) continue;
    const DeviceBuffer q = share.input(share.rows(op_case.problem.inputs.q));
    const DeviceBuffer keys = share.input(op_case.truth.summaries_k);
    const DeviceBuffer lse = share.accumulated(share.rows(op_case.truth.lse_cmp));
    const DeviceBuffer selected = poisoned_indices(device, share.plan.rows * width);
    auto arguments = share.op<SelectBlocks>();
    arguments.queries = share.queries.get();
    arguments.q = q.data();
    arguments.keys = keys.data();
    arguments.log_sum_exp = lse.data();
    arguments.selected = static_cast<std::int32_t*>(selected.data());
    device.run(arguments, Stream{});
    partition.gather(selected.indices().data(), all.data(), rank, static_cast<std::size_t>(width) * 4);
  }
  return all;
}

void check_selection(KernelTest& test, const OpCase& op_case) {
  std::vector<std::int32_t> expected;
  test.for_each_partition(op_case, [&](const Partition& partition) {
    const std::vector<std::int32_t> all = select_blocks(op_case, partition, test.device());
    if (expected.empty()) {
      expected = all;
      ASSERT_TRUE(Truth(op_case.problem, op_case.dtype, all).selection_is_right());
    }
    ASSERT_EQ(all, expected) << "a selection depends on where it is made";
  });
}

TEST_P(ForwardOps, SelectBlocks) {
  for_each_case([&](const OpCase& op_case) { check_selection(*this, op_case); },
                GetParam().selects_in_chunks ? Also::long_documents : Also::nothing);
}

TEST_P(ForwardOps, SelectBlocksOfManyShapes) {
  for_each_selection_shape([&](const OpCase& op_case) { check_selection(*this, op_case); }, BlockSizes::all);
}

TEST_P(ForwardOps, SelectBlocksOfLongLists) {
  with_many_blocks([&](const OpCase& op_case) { check_selection(*this, op_case); });
}

// Every block is one of nine kinds; blocks of one kind have equal scores, and the best kind depends on the query. Among
// equal scores the lower blocks must be selected, within a chunk of 32 blocks and across chunks. A query that is NaN
// makes all of its blocks tie.
TEST_P(ForwardOps, SelectBlocksOfEqualScores) {
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
  // The middle of a block depends on its kind. The rest is the same in all blocks, and so are summaries across two
  // blocks.
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
  const OpCase op_case(problem, DType::bf16);
  std::vector<std::int32_t> expected;
  for_each_partition(op_case, [&](const Partition& partition) {
    const std::vector<std::int32_t> all = select_blocks(op_case, partition, device());
    if (expected.empty()) expected = all;
    ASSERT_EQ(all, expected) << "a selection depends on where it is made";
  });
  const auto of_row = [&](const std::vector<std::int32_t>& selected, std::int64_t row) {
    const auto first = selected.begin() + row * config.select_count;
    return std::vector<std::int32_t>(first, first + config.select_count);
  };
  for (const std::int64_t row : not_numbers) ASSERT_EQ(of_row(expected, row), of_row(op_case.truth.selected, row));
  for (std::int64_t row = config.select_block * config.select_count; row < tokens; ++row) {
    const std::vector<std::int32_t> selected = of_row(expected, row);
    const std::int64_t last = row / config.select_block;
    ASSERT_TRUE(std::adjacent_find(selected.begin(), selected.end(), std::greater_equal()) == selected.end())
        << "row " << row << ": " << testing::PrintToString(selected);
    ASSERT_EQ(selected.back(), last) << "row " << row;
    bool passed_over[9] = {};  // whether a block of the kind was not selected
    for (std::int64_t block = config.init_blocks; block <= last - config.local_blocks; ++block) {
      bool& lower_is_left = passed_over[kinds[static_cast<std::size_t>(block)]];
      const bool is_taken = std::count(selected.begin(), selected.end(), block) == 1;
      ASSERT_FALSE(is_taken && lower_is_left) << "row " << row << " has block " << block << ", not a lower equal one";
      lower_is_left |= !is_taken;
    }
  }
}

TEST_P(ForwardOps, MarkNeeds) {
  for_each_case([&](const OpCase& op_case) {
    const Config& config = op_case.config();
    for_each_partition(op_case, [&](const Partition& partition) {
      for (int rank = 0; rank < partition.ranks(); ++rank) {
        RankShare share(op_case, partition, rank, device());
        const planning::Layout& layout = share.plan.layout;
        std::vector<std::int32_t> expected(
            static_cast<std::size_t>(planning::NeedMatrix::words_of(layout.blocks, config.num_kv_heads)));
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
        auto arguments = share.op<MarkNeeds>();
        arguments.queries = share.queries.get();
        arguments.selected = static_cast<const std::int32_t*>(selected.data());
        arguments.bitmap = static_cast<std::uint32_t*>(bitmap.data());
        device().run(arguments, Stream{});
        ASSERT_EQ(bitmap.indices(), expected);
      }
    });
  });
}

// SelectedAttention of one rank, all rounds; `out` may be null if `combine` is set.
void attend_selected(const OpCase& op_case, RankShare& share, Device& device, void* out, void* log_sum_exp,
                     const CombineBranches* combine) {
  const Tensors& inputs = op_case.problem.inputs;
  const DeviceBuffer q = share.input(share.rows(inputs.q)), k = share.input(share.rows(inputs.k.slc)),
                     v = share.input(share.rows(inputs.v.slc));
  const DeviceBuffer table(device, share.schedule.table), selected(device, share.selected());
  for (const planning::ExchangeRound& round : share.schedule.rounds) {
    const DeviceBuffer pool = share.input(share.pool(round, inputs.k.slc, inputs.v.slc));
    auto arguments = share.op<SelectedAttention>();
    arguments.queries = share.queries.get();
    arguments.q = q.data();
    arguments.k = k.data();
    arguments.v = v.data();
    arguments.pool = pool.data();
    arguments.table = static_cast<const BlockLocation*>(table.data());
    arguments.selected = static_cast<const std::int32_t*>(selected.data());
    arguments.group_begin = round.group_begin;
    arguments.group_end = round.group_end;
    arguments.out = out;
    arguments.log_sum_exp = log_sum_exp;
    arguments.combine = combine;
    device.run(arguments, Stream{});
    device.synchronize(Stream{});
  }
}

// By itself; and on devices that combine branches in the selected attention, also so, without an output of its own.
void check_selected_attention(KernelTest& test, const OpCase& op_case) {
  Device& device = test.device();
  test.for_each_partition(op_case, [&](const Partition& partition) {
    Attended attended(op_case), gated(op_case);
    bool combines = false;
    for (int rank = 0; rank < partition.ranks(); ++rank) {
      RankShare share(op_case, partition, rank, device);
      if (share.plan.rows == 0) continue;
      const AttentionOutputs outputs(op_case, share);
      attend_selected(op_case, share, device, outputs.out.data(), outputs.log_sum_exp.data(), nullptr);
      attended.add(share, outputs.out, outputs.log_sum_exp);

      combines = device.combines_selected(op_case.config(), op_case.dtype, *share.queries);
      if (!combines) continue;
      const DeviceBuffer gate = share.input(share.rows(op_case.problem.inputs.gate)),
                         o_cmp = share.input(share.rows(op_case.truth.o_cmp)),
                         o_win = share.input(share.rows(op_case.truth.o_win));
      const AttentionOutputs of_gate(op_case, share);
      auto combine = share.op<CombineBranches>();
      combine.rows = share.plan.rows;
      combine.gate = gate.data();
      combine.o_cmp = o_cmp.data();
      combine.o_win = o_win.data();
      combine.out = of_gate.out.data();
      attend_selected(op_case, share, device, nullptr, of_gate.log_sum_exp.data(), &combine);
      gated.add(share, of_gate.out, of_gate.log_sum_exp);
    }
    ASSERT_TRUE(agrees("out", attended.out, op_case.truth.o_slc, op_case.plain.o_slc, forward_factor, op_case.dtype,
                       op_case.dtype));
    ASSERT_TRUE(log_sum_exp_agrees(attended.log_sum_exp, op_case.truth.lse_slc, op_case.plain.lse_slc, op_case.dtype));
    if (!combines) return;
    ASSERT_TRUE(
        agrees("gated", gated.out, op_case.truth.out, op_case.plain.out, forward_factor, op_case.dtype, op_case.dtype));
    ASSERT_EQ(gated.log_sum_exp, attended.log_sum_exp);
  });
}

TEST_P(ForwardOps, SelectedAttention) {
  for_each_case([&](const OpCase& op_case) { check_selected_attention(*this, op_case); }, Also::steep_scores);
}

TEST_P(ForwardOps, SelectedAttentionOfLongLists) {
  with_many_blocks([&](const OpCase& op_case) { check_selected_attention(*this, op_case); });
}

TEST_P(ForwardOps, SelectedAttentionOfManyShapes) {
  for_each_selection_shape([&](const OpCase& op_case) { check_selected_attention(*this, op_case); }, BlockSizes::other);
}

TEST_P(ForwardOps, WindowAttention) {
  const auto check = [&](const OpCase& op_case) {
    const Tensors& inputs = op_case.problem.inputs;
    for_each_partition(op_case, [&](const Partition& partition) {
      Attended attended(op_case);
      for (int rank = 0; rank < partition.ranks(); ++rank) {
        RankShare share(op_case, partition, rank, device());
        if (share.plan.rows == 0) continue;
        const DeviceBuffer q = share.input(share.rows(inputs.q)), k = share.input(share.rows(inputs.k.win)),
                           v = share.input(share.rows(inputs.v.win));
        const DeviceBuffer halo_k = share.input(share.halo(share.plan.window_halo, inputs.k.win)),
                           halo_v = share.input(share.halo(share.plan.window_halo, inputs.v.win));
        const AttentionOutputs outputs(op_case, share);
        auto arguments = share.op<WindowAttention>();
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
      ASSERT_TRUE(agrees("out", attended.out, op_case.truth.o_win, op_case.plain.o_win, forward_factor, op_case.dtype,
                         op_case.dtype));
      ASSERT_TRUE(
          log_sum_exp_agrees(attended.log_sum_exp, op_case.truth.lse_win, op_case.plain.lse_win, op_case.dtype));
    });
  };
  for_each_case(check, Also::steep_scores);
}

TEST_P(ForwardOps, CombineBranches) {
  for_each_case([&](const OpCase& op_case) {
    RankShare share(op_case, make_partition(PartitionKind::contiguous, op_case.problem, 1), 0, device());
    const DeviceBuffer gate = share.input(op_case.problem.inputs.gate), o_cmp = share.input(op_case.truth.o_cmp),
                       o_slc = share.input(op_case.truth.o_slc), o_win = share.input(op_case.truth.o_win);
    const AttentionOutputs outputs(op_case, share);
    auto arguments = share.op<CombineBranches>();
    arguments.rows = share.plan.rows;
    arguments.gate = gate.data();
    arguments.o_cmp = o_cmp.data();
    arguments.o_slc = o_slc.data();
    arguments.o_win = o_win.data();
    arguments.out = outputs.out.data();
    device().run(arguments, Stream{});
    ASSERT_TRUE(agrees("out", share.values(outputs.out), op_case.truth.out, op_case.plain.out, forward_factor,
                       op_case.dtype, op_case.dtype));
  });
}

}  // namespace
}  // namespace cpnsa::test
