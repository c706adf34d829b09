// The options for what the forward saves for the backward change sizes and traffic, but no bit of a result.

#include "src/planning/layout.hpp"
#include "tests/conformance/attention/attention_test.hpp"
#include "tests/support/seeds.hpp"

namespace cpnsa::test {
namespace {

CPNSA_ATTENTION_SUITE(Memory);

struct Choice {
  bool refetch_blocks;
  bool recompute_branches;
  bool reuse_saved = false;
};
constexpr Choice others_than_default[] = {{false, false}, {true, true}, {false, true}, {true, false, true}};

LayerSetting with(LayerSetting setting, const Choice& choice) {
  setting.refetch_blocks = choice.refetch_blocks;
  setting.recompute_branches = choice.recompute_branches;
  setting.reuse_saved = choice.reuse_saved;
  return setting;
}

std::string describe(const Choice& choice) {
  return std::string(choice.refetch_blocks ? "refetch" : "keep") + (choice.recompute_branches ? ", recompute" : "") +
         (choice.reuse_saved ? ", reuse" : "");
}

std::int64_t of(const Statistics& statistics, Traffic kind) {
  return statistics.bytes_received[static_cast<std::size_t>(kind)];
}

// Bytes that a buffer of `elements` elements takes in the workspace.
std::size_t aligned(std::int64_t elements, std::size_t element) {
  constexpr std::size_t alignment = 256;
  return (static_cast<std::size_t>(elements) * element + alignment - 1) / alignment * alignment;
}

void expect_traffic(const LayerResult& result, const LayerResult& usual, const Choice& choice, std::int64_t kv_heads) {
  for (std::size_t rank = 0; rank < result.statistics.size(); ++rank) {
    const Statistics &here = result.statistics[rank], &there = usual.statistics[rank];
    ASSERT_EQ(here.bytes_received, here.bytes_predicted) << "rank " << rank;
    ASSERT_EQ(of(there, Traffic::refetched_blocks), of(there, Traffic::blocks));
    const std::int64_t refetched = of(here, Traffic::refetched_blocks), blocks = of(there, Traffic::blocks);
    if (!choice.refetch_blocks) {
      ASSERT_EQ(refetched, 0) << "rank " << rank;
    } else if (here.exchange == Exchange::gather &&
               choice.recompute_branches) {  // one round per KV head; the last two are fetched once
      ASSERT_EQ(refetched, blocks + blocks / kv_heads * std::max<std::int64_t>(0, kv_heads - 2)) << "rank " << rank;
    } else {
      ASSERT_GE(refetched, blocks) << "rank " << rank;
    }
    for (const Traffic kind : {Traffic::halo, Traffic::blocks, Traffic::summaries, Traffic::block_gradients})
      ASSERT_EQ(of(here, kind), of(there, kind)) << name_of(kind);
  }
}

TEST_P(Memory, ChoicesChangeNoBit) {
  for (const std::uint64_t seed : seeds(4)) {
    const DType dtype = seed % 4 < 2 ? widest_dtype() : device().dtypes.back();
    Config config = small_config();
    if (seed % 2 == 0)
      config.num_q_heads = config.num_kv_heads = 4;  // up to four rounds, two of which are refetched twice
    if (seed % 4 == 3) config.head_dim_v = 16;       // dq fits into the branches' outputs
    const Problem problem = rounded(make_problem(config, {0, 93, 160, 161, 400}, seed), dtype);
    if (!supported(config, dtype)) continue;
    for (const int ranks : rank_counts())
      for (const PartitionKind kind : {PartitionKind::contiguous, PartitionKind::zigzag, PartitionKind::custom})
        for (const Exchange exchange : exchanges()) {
          if (exchange == Exchange::automatic) continue;  // is one of the others
          const LayerSetting setting{.dtype = dtype, .exchange = exchange, .gradient_dtype = dtype};
          const LayerResult usual = run(problem, kind, ranks, setting);
          if (ranks > 2 && exchange == Exchange::gather && kind == PartitionKind::zigzag) {
            ASSERT_GT(of(usual.statistics[1], Traffic::blocks), 0) << "nothing to fetch";
          }
          for (const Choice& choice : others_than_default) {
            SCOPED_TRACE(name_of(kind) + ", " + std::to_string(ranks) + " ranks, " + std::string(name_of(exchange)) +
                         ", " + std::string(name_of(dtype)) + ", " + describe(choice));
            const LayerResult result = run(problem, kind, ranks, with(setting, choice));
            ASSERT_TRUE(same_bits(usual, result));
            expect_traffic(result, usual, choice, config.num_kv_heads);
          }
        }
  }
}

TEST_P(Memory, SizesAreThePredictedOnes) {
  const DType dtype = widest_dtype();
  const std::size_t element = size_of(dtype), accumulated = size_of(accumulate_dtype(dtype));
  const Config config = small_config();
  if (!supported(config, dtype)) return;
  const Problem problem = make_problem(config, {0, 93, 400}, 1);
  for (const int ranks : rank_counts()) {
    SCOPED_TRACE(std::to_string(ranks) + " ranks");
    const Partition partition = make_partition(PartitionKind::zigzag, problem, ranks);
    on_ranks(ranks, [&](Communicator& communicator, Device& own) {
      const auto sizes = [&](const Choice& choice) {
        const Attention layer(config, partition, own, communicator,
                              options_of(with({.dtype = dtype, .sum_parameter_gradients = false}, choice)));
        return std::pair{layer.saved_bytes(), layer.workspace_bytes()};
      };
      const auto [saved, workspace] = sizes({true, false});
      const std::int64_t rows = partition.local_tokens(communicator.rank());
      const std::size_t branches = 3 * aligned(rows * config.num_q_heads * config.head_dim_v, element) +
                                   3 * aligned(rows * config.num_q_heads, accumulated);
      const planning::Layout layout(config, partition);
      const std::int64_t reachable = static_cast<std::int64_t>(layout.reachable_blocks(communicator.rank()).size());
      const std::int64_t slot = config.select_block * (config.head_dim_qk + config.head_dim_v);
      const std::size_t blocks = aligned(reachable * config.num_kv_heads * slot, element);
      EXPECT_EQ(sizes({true, true}).first + branches, saved);
      EXPECT_LE(sizes({true, true}).second, workspace + branches);
      EXPECT_EQ(sizes({false, false}).first, saved + blocks);
      EXPECT_LE(sizes({false, false}).second, workspace);
      EXPECT_EQ(sizes({false, true}).first + branches, saved + blocks);
    });
  }
}

// Gradient sums that have another type than the gradients reuse the memory of the saved outputs as far as they fit.
TEST_P(Memory, WhatIsReusedIsNotInTheWorkspace) {
  const DType dtype = device().dtypes.back();
  Config config = small_config();
  config.head_dim_v = 16;
  if (!supported(config, dtype)) return;
  ASSERT_EQ(size_of(dtype), 2u);
  const Problem problem =
      make_problem(config, {0, 93, 16000}, 1);  // so long that the backward's workspace is larger than the forward's
  on_ranks(rank_counts().front(), [&](Communicator& communicator, Device& own) {
    const Partition partition = make_partition(PartitionKind::zigzag, problem, communicator.size());
    const auto sizes = [&](bool recompute, bool reuse) {
      const Attention layer(config, partition, own, communicator,
                            options_of({.dtype = dtype,
                                        .recompute_branches = recompute,
                                        .reuse_saved = reuse,
                                        .sum_parameter_gradients = false,
                                        .gradient_dtype = dtype}));
      return std::pair{layer.saved_bytes(), layer.workspace_bytes()};
    };
    const std::int64_t rows = partition.local_tokens(communicator.rank());
    const std::size_t dq = aligned(rows * config.num_q_heads * config.head_dim_qk, 4),
                      output = aligned(rows * config.num_q_heads * config.head_dim_v, 2),
                      dk = aligned(rows * config.num_kv_heads * config.head_dim_qk, 4);
    ASSERT_EQ(config.head_dim_qk, config.head_dim_v);
    ASSERT_LT(3 * output, dq + 6 * dk);
    const std::size_t sums_after_dq = (3 * output - dq) / dk;  // sums of the three dk and three dv that fit after dq
    EXPECT_EQ(sizes(false, true).first, sizes(false, false).first);
    const std::size_t with = sizes(false, true).second, without = sizes(false, false).second;
    EXPECT_LT(with, without);
    EXPECT_GE(with + dq + sums_after_dq * dk, without);  // greater if the forward's workspace is now the larger
    EXPECT_EQ(sizes(true, true), sizes(true, false));    // recomputed outputs in the workspace are reused in any case
  });
}

// A hidden width of 0 stands for twice the head dimension.
TEST_P(Memory, HiddenWidthsOfZeroAreTwiceTheHeadDimension) {
  const DType dtype = widest_dtype();
  Config config = small_config();
  config.compress_hidden_k = 2 * config.head_dim_qk, config.compress_hidden_v = 2 * config.head_dim_v;
  Config unset = config;
  unset.compress_hidden_k = unset.compress_hidden_v = 0;
  if (!supported(config, dtype)) return;
  const Problem problem = make_problem(config, {0, 93, 160}, 3);
  on_ranks(rank_counts().front(), [&](Communicator& communicator, Device& own) {
    const Partition partition = make_partition(PartitionKind::zigzag, problem, communicator.size());
    const LayerSetting setting{.dtype = dtype};
    RankTensors expected(problem, partition, communicator.rank(), setting, own);
    RankTensors found(problem, partition, communicator.rank(), setting, own);
    for (auto [layer_config, tensors] : {std::pair{&config, &expected}, std::pair{&unset, &found}}) {
      Attention layer(*layer_config, partition, own, communicator, options_of(setting));
      LayerMemory memory(layer, own);
      layer.forward(tensors->inputs, tensors->out, tensors->selected, &memory.saved, memory.workspace(), Stream{});
      own.synchronize(Stream{});
    }
    EXPECT_EQ(found.out_values(), expected.out_values());
  });
}

// Without a backward nothing is saved, so the options have no effect.
TEST_P(Memory, WithoutABackwardTheChoicesMeanNothing) {
  const DType dtype = widest_dtype();
  const Problem problem = make_problem(small_config(), {0, 93, 160}, 3);
  if (!supported(problem.config, dtype)) return;
  for (const int ranks : rank_counts()) {
    const LayerSetting setting{.dtype = dtype, .backward = false};
    const LayerResult usual = run(problem, PartitionKind::zigzag, ranks, setting);
    for (const Choice& choice : others_than_default) {
      const LayerResult result = run(problem, PartitionKind::zigzag, ranks, with(setting, choice));
      ASSERT_EQ(result.out, usual.out) << describe(choice);
      for (std::size_t rank = 0; rank < usual.statistics.size(); ++rank)
        ASSERT_EQ(result.statistics[rank].workspace_bytes, usual.statistics[rank].workspace_bytes) << describe(choice);
    }
  }
}

}  // namespace
}  // namespace cpnsa::test
