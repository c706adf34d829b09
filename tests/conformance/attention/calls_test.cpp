// Optional arguments, reused workspaces, and the order of calls.

#include "tests/conformance/attention/attention_test.hpp"

namespace cpnsa::test {
namespace {

CPNSA_ATTENTION_SUITE(Calls);

Problem problem_of(std::uint64_t seed, DType dtype) {
  Config config = small_config();
  config.compressor = std::vector{Compressor::mean, Compressor::linear, Compressor::mlp}[seed % 3];
  return rounded(make_problem(config, {0, 93, 160}, seed, {.shared_k = seed % 2 == 0}), dtype);
}

// The forwards of several microbatches, then their backwards in the opposite order, with one layer and one workspace,
// which is poisoned before each call.
TEST_P(Calls, SeveralForwardsMayAwaitTheirBackward) {
  const DType dtype = widest_dtype();
  if (!supported(small_config(), dtype)) return;
  constexpr std::size_t batches = 3;
  std::vector<Problem> problems;
  for (std::size_t batch = 0; batch < batches; ++batch)
    problems.push_back(rounded(make_problem(small_config(), {0, 93, 160}, 10 + batch), dtype));
  for (const int ranks : rank_counts())
    for (const Exchange exchange : exchanges()) {
      SCOPED_TRACE(std::to_string(ranks) + " ranks, " + std::string(name_of(exchange)));
      const LayerSetting setting{.dtype = dtype, .exchange = exchange};
      const Partition partition = make_partition(PartitionKind::zigzag, problems[0], ranks);
      std::vector<LayerResult> alone;
      for (const Problem& problem : problems) alone.push_back(run(problem, partition, setting));
      on_ranks(ranks, [&](Communicator& communicator, Device& own) {
        Attention layer(problems[0].config, partition, own, communicator, options_of(setting));
        LayerMemory work(layer, own);
        std::vector<std::unique_ptr<RankTensors>> tensors;
        std::vector<std::unique_ptr<LayerMemory>> memories;
        for (std::size_t batch = 0; batch < batches; ++batch) {
          tensors.push_back(
              std::make_unique<RankTensors>(problems[batch], partition, communicator.rank(), setting, own));
          memories.push_back(std::make_unique<LayerMemory>(layer, own));
          work.poison_workspace();
          layer.forward(tensors[batch]->inputs, tensors[batch]->out, tensors[batch]->selected, &memories[batch]->saved,
                        work.workspace(), Stream{});
          own.synchronize(Stream{});
        }
        for (std::size_t batch = batches; batch-- > 0;) {
          work.poison_workspace();
          layer.backward(tensors[batch]->inputs, tensors[batch]->dout, memories[batch]->saved,
                         tensors[batch]->gradients, work.workspace(), Stream{});
          own.synchronize(Stream{});
        }
        for (std::size_t batch = 0; batch < batches; ++batch) {
          const auto local = [&](const Values& packed) {
            const std::size_t width = packed.size() / static_cast<std::size_t>(partition.tokens());
            Values rows(static_cast<std::size_t>(partition.local_tokens(communicator.rank())) * width);
            partition.scatter(packed.data(), rows.data(), communicator.rank(), width * sizeof(double));
            return rows;
          };
          EXPECT_EQ(tensors[batch]->out_values(), local(alone[batch].out)) << "batch " << batch;
          const Tensors gradients = tensors[batch]->gradient_values();
          for_each_token_tensor(
              [&](const schema::Tensor& tensor, const Values& found, const Values& packed) {
                EXPECT_EQ(found, local(packed)) << tensor.gradient_name().view() << " of batch " << batch;
              },
              gradients, alone[batch].gradients);
          for_each_parameter(
              [&](const schema::Tensor& tensor, const Values& found, const Values& expected) {
                EXPECT_EQ(found, expected) << tensor.gradient_name().view();
              },
              gradients, alone[batch].gradients);
        }
      });
    }
}

TEST_P(Calls, WithoutABackwardTheForwardIsTheSame) {
  for (const DType dtype : device().dtypes) {
    const Problem problem = problem_of(2, dtype);
    if (!supported(problem.config, dtype)) continue;
    for (const int ranks : rank_counts())
      for (const Exchange exchange : exchanges()) {
        const LayerResult with = run(problem, PartitionKind::zigzag, ranks, {.dtype = dtype, .exchange = exchange});
        const LayerResult without =
            run(problem, PartitionKind::zigzag, ranks, {.dtype = dtype, .exchange = exchange, .backward = false});
        ASSERT_EQ(with.out, without.out) << ranks << " ranks";
        ASSERT_EQ(with.selected, without.selected) << ranks << " ranks";
      }
  }
}

// If the library sums parameter gradients, every rank has the sum over the ranks; it equals the sum of those that it
// does not sum.
TEST_P(Calls, ParameterGradientsAreSummedWhenAsked) {
  const DType dtype = widest_dtype();
  for (std::uint64_t seed = 0; seed < 3; ++seed) {
    const Problem problem = problem_of(seed, dtype);
    if (!supported(problem.config, dtype)) continue;
    for (const int ranks : rank_counts()) {
      SCOPED_TRACE(std::to_string(ranks) + " ranks, " + describe(problem));
      const LayerResult summed = run(problem, PartitionKind::custom, ranks, {.dtype = dtype});
      const LayerResult apart =
          run(problem, PartitionKind::custom, ranks, {.dtype = dtype, .sum_parameter_gradients = false});
      const Truth truth(problem, dtype, summed.selected);
      ASSERT_TRUE(truth.gradients_agree(summed.gradients));
      ASSERT_TRUE(truth.gradients_agree(apart.gradients));
      for (const Tensors& of_rank : summed.parameters_of)
        for_each_parameter([](const schema::Tensor& tensor, const Values& found,
                              const Values& first) { ASSERT_EQ(found, first) << tensor.gradient_name().view(); },
                           of_rank, summed.parameters_of[0]);
    }
  }
}

// Gradients that are not given are not computed, and the others do not change.
TEST_P(Calls, OptionalOutputsMayBeLeftOut) {
  const DType dtype = widest_dtype();
  const Problem problem = problem_of(5, dtype);
  if (!supported(problem.config, dtype)) return;
  for (const int ranks : rank_counts())
    for (const bool sum : {false, true}) {
      const LayerSetting setting{.dtype = dtype, .sum_parameter_gradients = sum};
      const Partition partition = make_partition(PartitionKind::zigzag, problem, ranks);
      on_ranks(ranks, [&](Communicator& communicator, Device& own) {
        Attention layer(problem.config, partition, own, communicator, options_of(setting));
        RankTensors all(problem, partition, communicator.rank(), setting, own);
        RankTensors some(problem, partition, communicator.rank(), setting, own);
        some.gradients.compress_k = {};
        some.gradients.compress_v.w1 = some.gradients.compress_v.pos = {};
        for (RankTensors* tensors : {&all, &some}) {
          LayerMemory memory(layer, own);
          layer.forward(tensors->inputs, tensors->out, tensors == &all ? tensors->selected : nullptr, &memory.saved,
                        memory.workspace(), Stream{});
          memory.poison_workspace();
          layer.backward(tensors->inputs, tensors->dout, memory.saved, tensors->gradients, memory.workspace(),
                         Stream{});
          own.synchronize(Stream{});
        }
        const Tensors of_all = all.gradient_values(), of_some = some.gradient_values();
        EXPECT_EQ(all.out_values(), some.out_values());
        EXPECT_EQ(of_all.q, of_some.q);
        EXPECT_EQ(of_all.k.cmp, of_some.k.cmp);
        EXPECT_EQ(of_all.compress_v.w2, of_some.compress_v.w2);
        EXPECT_EQ(of_all.compress_v.b1, of_some.compress_v.b1);
      });
    }
}

// A layer can be moved, and two layers can share a device and a communicator.
TEST_P(Calls, TwoLayersTakeTurns) {
  const DType dtype = widest_dtype();
  const Problem first = problem_of(3, dtype), second = problem_of(4, dtype);
  if (!supported(first.config, dtype) || !supported(second.config, dtype)) return;
  const LayerSetting setting{.dtype = dtype};
  for (const int ranks : rank_counts()) {
    const Partition partition = make_partition(PartitionKind::contiguous, first, ranks);
    const Values expected_first = run(first, partition, setting).out;
    const Values expected_second = run(second, partition, setting).out;
    on_ranks(ranks, [&](Communicator& communicator, Device& own) {
      Attention one(first.config, partition, own, communicator, options_of(setting));
      Attention made(second.config, partition, own, communicator, options_of(setting));
      Attention two = std::move(made);
      RankTensors of_one(first, partition, communicator.rank(), setting, own);
      RankTensors of_two(second, partition, communicator.rank(), setting, own);
      LayerMemory memory_one(one, own), memory_two(two, own);
      for (int turn = 0; turn < 2; ++turn) {
        one.forward(of_one.inputs, of_one.out, nullptr, &memory_one.saved, memory_one.workspace(), Stream{});
        two.forward(of_two.inputs, of_two.out, nullptr, &memory_two.saved, memory_two.workspace(), Stream{});
      }
      own.synchronize(Stream{});
      const std::size_t width = expected_first.size() / static_cast<std::size_t>(first.tokens());
      Values rows(of_one.out_values().size());
      partition.scatter(expected_first.data(), rows.data(), communicator.rank(), width * sizeof(double));
      EXPECT_EQ(of_one.out_values(), rows);
      partition.scatter(expected_second.data(), rows.data(), communicator.rank(), width * sizeof(double));
      EXPECT_EQ(of_two.out_values(), rows);
    });
  }
}

}  // namespace
}  // namespace cpnsa::test
