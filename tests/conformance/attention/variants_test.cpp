// The layer's variants compared with the oracle: a query of its own for the compressed branch, rotated summaries,
// attention sinks, given blocks, branches that are off, and the log-sum-exps as results.

#include <gmock/gmock.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <numeric>

#include "cpnsa/error.hpp"
#include "tests/conformance/attention/attention_test.hpp"
#include "tests/support/seeds.hpp"

namespace cpnsa::test {
namespace {

CPNSA_ATTENTION_SUITE(Variants);

Problem problem_of(std::uint64_t seed, const DeviceBackend& device, DType dtype, const ProblemOptions& options) {
  Problem plain = random_problem(9000 + seed, 120, device.dim_step);
  // A tolerance is derived from a plain implementation's error, which in tensors of a few elements is small by chance.
  if (size_of(dtype) < sizeof(float)) plain.config = small_config();
  ProblemOptions all = options;
  all.shared_k = plain.shared_k, all.shared_v = plain.shared_v;
  if (all.rotated_pairs > 0) all.rotated_pairs = plain.config.head_dim_qk / 2;
  Problem problem = make_problem(plain.config, plain.cu_seqlens, seed, all);
  problem.rotation_interleaved = seed % 2 == 0;
  return rounded(std::move(problem), dtype);
}

// The settings that the results must not depend on, in turns.
LayerSetting setting_of(std::uint64_t seed, DType dtype, const std::vector<Exchange>& exchanges) {
  LayerSetting setting{.dtype = dtype, .exchange = exchanges[seed % exchanges.size()]};
  setting.recompute_branches = seed % 2 == 1;
  setting.refetch_blocks = seed % 4 < 2;
  setting.reuse_saved = seed % 3 == 2;
  setting.log_sum_exp = true;
  return setting;
}

testing::AssertionResult log_sum_exps_agree(const LayerResult& result, const OracleForward& truth, DType dtype) {
  const std::array<const Values*, 3> expected{&truth.lse_cmp, &truth.lse_slc, &truth.lse_win};
  for (std::size_t branch = 0; branch < expected.size(); ++branch) {
    const Values& found = result.log_sum_exp[branch];
    if (found.empty()) continue;
    if (found.size() != expected[branch]->size()) return testing::AssertionFailure() << "wrong number of log-sum-exps";
    const double tolerance = dtype == DType::f64 ? 1e-12 : dtype == DType::f32 ? 1e-4 : 0.1;
    for (std::size_t i = 0; i < found.size(); ++i) {
      const double right = (*expected[branch])[i];
      if (!(found[i] == right || std::abs(found[i] - right) <= tolerance * (1 + std::abs(right))))
        return testing::AssertionFailure()
               << "log-sum-exp " << i << " of branch " << branch << " is " << found[i] << ", expected " << right;
    }
  }
  return testing::AssertionSuccess();
}

/// Runs a problem at every rank count and compares everything with the oracle.
class Compared {
 public:
  Compared(const Problem& problem, DType dtype) : problem_(problem), dtype_(dtype) {}

  void expect(const LayerResult& result) {
    ASSERT_FALSE(result.out.empty());
    const bool selects = problem_.config.has_branch(1);
    if (!truth_) {
      selected_ = result.selected;
      truth_.emplace(problem_, dtype_, selected_);
      if (selects && problem_.given_selection.empty()) {
        ASSERT_TRUE(truth_->selection_is_right());
      }
    }
    if (selects) {
      ASSERT_EQ(result.selected, problem_.given_selection.empty() ? selected_ : problem_.given_selection);
    }
    ASSERT_TRUE(truth_->out_agrees(result.out));
    ASSERT_TRUE(truth_->gradients_agree(result.gradients));
    ASSERT_TRUE(log_sum_exps_agree(result, truth_->forward(), dtype_));
    for (const Statistics& statistics : result.statistics)
      ASSERT_EQ(statistics.bytes_received, statistics.bytes_predicted);
  }

 private:
  const Problem& problem_;
  DType dtype_;
  std::optional<Truth> truth_;
  std::vector<std::int32_t> selected_;
};

#define CPNSA_EXPECT_RIGHT_AT_ALL_RANKS(problem, setting)                                                      \
  do {                                                                                                         \
    SCOPED_TRACE(describe(problem));                                                                           \
    if (!supported((problem).config, (setting).dtype)) break;                                                  \
    Compared compared(problem, (setting).dtype);                                                               \
    for (const int ranks : rank_counts()) {                                                                    \
      SCOPED_TRACE(std::to_string(ranks) + " ranks");                                                          \
      compared.expect(run(problem, partition_kinds[static_cast<std::size_t>(ranks + 1) % 4], ranks, setting)); \
      if (HasFatalFailure()) return;                                                                           \
    }                                                                                                          \
  } while (false)

// Every query's own block, and as many others as there is room for, drawn at random.
std::vector<std::int32_t> random_selection(const Problem& problem, std::uint64_t seed) {
  const Config& config = problem.config;
  Random random(seed);
  std::vector<std::int32_t> selection;
  for (std::int64_t row = 0; row < problem.tokens(); ++row) {
    const std::int64_t last = (row - document_of(problem.cu_seqlens, row).begin) / config.select_block;
    for (std::int64_t group = 0; group < config.num_kv_heads; ++group) {
      std::vector<std::int32_t> blocks(static_cast<std::size_t>(last + 1));
      std::iota(blocks.begin(), blocks.end(), 0);
      while (blocks.size() > static_cast<std::size_t>(random.integer(1, config.select_count)))
        blocks.erase(blocks.begin() + random.integer(0, static_cast<std::int64_t>(blocks.size()) - 1));
      blocks.resize(static_cast<std::size_t>(config.select_count), -1);
      selection.insert(selection.end(), blocks.begin(), blocks.end());
    }
  }
  return selection;
}

TEST_P(Variants, OwnQueryOfTheCompressedBranch) {
  for (const DType dtype : device().dtypes)
    for (const std::uint64_t seed : seeds(4)) {
      const Problem problem = problem_of(seed, device(), dtype, {.q_cmp = true});
      CPNSA_EXPECT_RIGHT_AT_ALL_RANKS(problem, setting_of(seed, dtype, exchanges()));
    }
}

TEST_P(Variants, RotatedSummaries) {
  for (const DType dtype : device().dtypes)
    for (const std::uint64_t seed : seeds(4)) {
      Problem problem = problem_of(seed, device(), dtype, {.rotated_pairs = 1});
      if (problem.rotation_cos.empty()) continue;  // too few tokens for a summary, or one channel
      CPNSA_EXPECT_RIGHT_AT_ALL_RANKS(problem, setting_of(seed, dtype, exchanges()));
    }
}

TEST_P(Variants, AttentionSinks) {
  for (const DType dtype : device().dtypes)
    for (const std::uint64_t seed : seeds(4)) {
      Problem problem = problem_of(seed, device(), dtype, {.sinks = true});
      if (seed % 4 == 3) problem.inputs.sink_win = {};
      CPNSA_EXPECT_RIGHT_AT_ALL_RANKS(problem, setting_of(seed, dtype, exchanges()));
    }
}

TEST_P(Variants, GivenBlocks) {
  for (const DType dtype : device().dtypes)
    for (const std::uint64_t seed : seeds(4)) {
      Problem problem = problem_of(seed, device(), dtype, {});
      problem.given_selection = random_selection(problem, seed);
      CPNSA_EXPECT_RIGHT_AT_ALL_RANKS(problem, setting_of(seed, dtype, exchanges()));
    }
}

TEST_P(Variants, BranchesThatAreOff) {
  const DType dtype = widest_dtype();
  for (const BranchSet branches : enum_values<BranchSet>)
    for (const std::uint64_t seed : seeds(3)) {
      Problem problem = problem_of(seed, device(), dtype, {});
      problem.config.branches = branches;
      if (seed == 2 && problem.config.has_branch(1)) problem.given_selection = random_selection(problem, seed);
      SCOPED_TRACE(name_of(branches));
      CPNSA_EXPECT_RIGHT_AT_ALL_RANKS(problem, setting_of(seed, dtype, exchanges()));
    }
}

TEST_P(Variants, BranchesThatAreOffMoveNoBytes) {
  const DType dtype = widest_dtype();
  Config config = small_config();
  if (!supported(config, dtype)) GTEST_SKIP();
  const int ranks = max_ranks();
  if (ranks == 1) GTEST_SKIP() << "one rank receives nothing";
  const auto received = [&](BranchSet branches, Traffic traffic) {
    config.branches = branches;
    const Problem problem = rounded(make_problem(config, {0, 150}, 1), dtype);
    std::int64_t bytes = 0;
    for (const Statistics& rank : run(problem, PartitionKind::zigzag, ranks, {.dtype = dtype}).statistics)
      bytes += rank.bytes_received[static_cast<std::size_t>(traffic)];
    return bytes;
  };
  for (const Traffic traffic : {Traffic::blocks, Traffic::block_gradients}) {
    EXPECT_GT(received(BranchSet::all, traffic), 0);
    EXPECT_EQ(received(BranchSet::cmp_win, traffic), 0);
  }
  for (const Traffic traffic : {Traffic::halo, Traffic::halo_gradients, Traffic::summaries, Traffic::summary_gradients})
    EXPECT_GT(received(BranchSet::all, traffic), 0);
  for (const Traffic traffic : {Traffic::summaries, Traffic::summary_gradients})
    EXPECT_EQ(received(BranchSet::win, traffic), 0);
  EXPECT_GT(received(BranchSet::slc, Traffic::summaries), 0) << "importance reads them";
  EXPECT_EQ(received(BranchSet::slc, Traffic::summary_gradients), 0);
}

TEST_P(Variants, AllAtOnce) {
  for (const DType dtype : device().dtypes)
    for (const std::uint64_t seed : seeds(4)) {
      Problem problem = problem_of(seed, device(), dtype, {.q_cmp = true, .sinks = true, .rotated_pairs = 1});
      if (seed % 2 == 0) problem.given_selection = random_selection(problem, seed);
      CPNSA_EXPECT_RIGHT_AT_ALL_RANKS(problem, setting_of(seed, dtype, exchanges()));
    }
}

// Wrong arguments of a caller are an error on every rank, before anything is enqueued.
TEST_P(Variants, BadInputIsRefused) {
  const DType dtype = widest_dtype();
  const Config config = small_config();
  if (!supported(config, dtype)) GTEST_SKIP();
  const Problem right =
      rounded(make_problem(config, {0, 60}, 3, {.q_cmp = true, .sinks = true, .rotated_pairs = 2}), dtype);
  using Change = std::function<void(AttentionInputs&, AttentionOptions&, BranchTensors&)>;
  struct Case {
    const char* said;
    BranchSet branches;
    Change change;
  };
  const Case cases[] = {
      {"q_cmp: found", BranchSet::all, [](auto&, auto& options, auto&) { options.compressed_query = false; }},
      {"q_cmp: found none", BranchSet::all, [](auto& in, auto&, auto&) { in.q_cmp = {}; }},
      {"sink_slc: found", BranchSet::all, [](auto&, auto& options, auto&) { options.sinks = false; }},
      {"sink_win: found one, expected none", BranchSet::slc, [](auto&, auto&, auto&) {}},
      {"inputs.selected: found none", BranchSet::all,
       [](auto&, auto& options, auto&) { options.given_selection = true; }},
      {"summary_rotation.sin: found", BranchSet::all, [](auto& in, auto&, auto&) { in.summary_rotation.sin = {}; }},
      {"summary_rotation.cos: found", BranchSet::all,
       [](auto& in, auto&, auto&) { in.summary_rotation.cos.shape[0] = 2; }},
      {"log_sum_exp.win: found", BranchSet::all, [](auto&, auto&, auto& wanted) { wanted.win.shape[0] += 1; }},
  };
  for (const Case& bad : cases)
    for (const int ranks : rank_counts()) {
      SCOPED_TRACE(bad.said);
      Problem problem = right;
      problem.config.branches = bad.branches;
      const Partition partition = make_partition(PartitionKind::contiguous, problem, ranks);
      on_ranks(ranks, [&](Communicator& communicator, Device& own) {
        LayerSetting setting{.dtype = dtype};
        setting.log_sum_exp = true;
        RankTensors tensors(problem, partition, communicator.rank(), setting, own);
        AttentionOptions options = options_of(setting);
        options.compressed_query = options.sinks = true;
        bad.change(tensors.inputs, options, tensors.log_sum_exp);
        Attention layer(problem.config, partition, own, communicator, options);
        LayerMemory memory(layer, own);
        try {
          layer.forward(tensors.inputs, tensors.out, tensors.selected, &memory.saved, memory.workspace(), Stream{},
                        tensors.log_sum_exp);
          ADD_FAILURE() << "no error";
        } catch (const ArgumentError& error) {
          EXPECT_THAT(error.what(), testing::HasSubstr(bad.said));
        }
      });
    }
}

TEST_P(Variants, GivenBlocksAreChecked) {
  const DType dtype = widest_dtype();
  const Config config = small_config();
  if (!supported(config, dtype)) GTEST_SKIP();
  Problem problem = rounded(make_problem(config, {0, 60}, 3), dtype);
  problem.given_selection = random_selection(problem, 1);
  const std::size_t row = 41 * 2 * 3;  // of block 5
  struct Case {
    std::array<std::int32_t, 3> blocks;
    const char* said;
  };
  for (const Case& bad : {Case{{-1, -1, -1}, "found block -1 at row"}, Case{{0, 6, -1}, "found block 6 at row"},
                          Case{{2, 1, -1}, "found block 1 at row"}, Case{{1, 1, -1}, "found block 1 at row"},
                          Case{{1, -1, 2}, "found block 2 at row"}, Case{{-2, 1, 2}, "found block -2 at row"}}) {
    std::copy(bad.blocks.begin(), bad.blocks.end(), problem.given_selection.begin() + row);
    const Partition partition = make_partition(PartitionKind::zigzag, problem, max_ranks());
    on_ranks(max_ranks(), [&](Communicator& communicator, Device& own) {
      RankTensors tensors(problem, partition, communicator.rank(), {.dtype = dtype}, own);
      AttentionOptions options = options_of({.dtype = dtype});
      options.given_selection = true;
      Attention layer(problem.config, partition, own, communicator, options);
      LayerMemory memory(layer, own);
      try {
        layer.forward(tensors.inputs, tensors.out, tensors.selected, &memory.saved, memory.workspace(), Stream{});
        ADD_FAILURE() << "no error: " << bad.said;
      } catch (const ArgumentError& error) {
        EXPECT_THAT(error.what(), testing::HasSubstr(bad.said));
      }
    });
  }
}

}  // namespace
}  // namespace cpnsa::test
