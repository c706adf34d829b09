// The rows of steps of every size are compared with the oracle's and with those of the library's forward.

#include "tests/conformance/decode/decode_test.hpp"
#include "tests/support/seeds.hpp"

namespace cpnsa::test {
namespace {

CPNSA_DECODE_SUITE(DecodeRows);

ServerSetting random_setting(const Problem& problem, Random& random) {
  ServerSetting setting;
  setting.page = problem.config.select_block * random.integer(1, 3);
  setting.summary_page = random.integer(0, 9);
  setting.checked = random.chance(0.5);
  setting.seed = problem.seed;
  return setting;
}

// Random shapes, all compressors, sequences that join and leave, one token or chunks a step, cut back and continued.
TEST_P(DecodeRows, AreTheForwardsRowsForRandomProblems) {
  for (const std::uint64_t seed : seeds(30)) {
    const Problem problem = random_problem(seed, 150, device().dim_step);
    Random random(seed);
    ServerSetting setting = random_setting(problem, random);
    setting.dtype = widest_dtype();
    if (supported(problem.config, setting.dtype)) check(problem, setting, random_steps(problem, random, 40));
  }
}

TEST_P(DecodeRows, AreTheForwardsRowsInEveryType) {
  for (const DType dtype : device().dtypes)
    for (const std::uint64_t seed : seeds(3)) {
      const Problem problem = random_problem(seed + 1000, 120, device().dim_step);
      Random random(seed);
      ServerSetting setting = random_setting(problem, random);
      setting.dtype = dtype;
      if (supported(problem.config, dtype)) check(problem, setting, random_steps(problem, random, 40));
    }
}

// Lengths on and next to every boundary: l, s, m, w, a page and a page of summaries.
TEST_P(DecodeRows, AreRightAroundEveryBoundary) {
  Config config = small_config();
  config.compress_block = 6, config.compress_stride = 2, config.select_block = 8, config.window = 19;
  std::vector<std::int64_t> lengths;
  for (const std::int64_t boundary : {2, 6, 8, 16, 19, 32, 48})
    for (const std::int64_t difference : {-1, 0, 1}) lengths.push_back(boundary + difference);
  for (const bool shared : {true, false}) {
    const Problem problem = make_problem(config, cu_seqlens_of(lengths), 3, {.shared_k = shared, .shared_v = shared});
    ServerSetting setting;
    setting.dtype = widest_dtype();
    setting.page = 16;
    setting.summary_page = 5;
    for (const std::int64_t count : {1, 5, 16}) check(problem, setting, steps_of(problem, count), Ranks::ends);
  }
}

// The numbers of speculated tokens and of a chunk of a prompt, in one batch with single tokens.
TEST_P(DecodeRows, MixSingleTokensSpeculationAndChunks) {
  const Problem problem = make_problem(small_config(), {0, 60, 100, 130, 131}, 4);
  std::vector<ServerStep> steps{{{{0, 0, 30}, {1, 0, 1}, {2, 0, 4}, {3, 0, 1}}},
                                {{{0, 30, 1}, {1, 1, 20}, {2, 4, 4}}},
                                {{{0, 29, 5}, {1, 21, 1}, {2, 6, 4}}},  // rejected tokens are appended again
                                {{{0, 34, 26}, {1, 22, 18}, {2, 10, 20}}}};
  ServerSetting setting;
  setting.dtype = widest_dtype();
  check(problem, setting, steps);
}

TEST_P(DecodeRows, AreRightForEveryNumberOfHeadsPerGroup) {
  for (std::int64_t heads = 1; heads <= 64; ++heads) {
    Config config = small_config();
    config.num_kv_heads = 1, config.num_q_heads = heads;
    if (device().dim_step == 1) config.head_dim_qk = 3, config.head_dim_v = 2;
    config.compressor = Compressor::mean;
    if (!supported(config, widest_dtype())) continue;
    const Problem problem = make_problem(config, {0, 45}, static_cast<std::uint64_t>(heads));
    ServerSetting setting;
    setting.dtype = widest_dtype();
    const auto one_forward = forward_of(problem, setting.dtype, device());
    const std::vector<int> counts = rank_counts();
    const int ranks = counts[static_cast<std::size_t>(heads) % counts.size()];
    const auto results = serve(problem, setting, steps_of(problem, 7), ranks);
    ASSERT_FALSE(results.empty());
    if (setting.dtype == DType::f64) {
      ASSERT_EQ(results.front().selected, one_forward.selected) << problem;
      ASSERT_TRUE(within("out", results.front().out, one_forward.out, 1e-11)) << problem;
    }
    const Truth truth(problem, setting.dtype, results.front().selected);
    ASSERT_TRUE(truth.out_agrees(results.front().out)) << problem;
  }
}

// Thousands of tokens by chunks against one forward.
TEST_P(DecodeRows, OfALongPromptByChunksAreThoseOfOneForward) {
  Config config = small_config();
  config.num_kv_heads = 1, config.num_q_heads = 2;
  config.compress_block = 32, config.compress_stride = 16, config.select_block = 64, config.select_count = 8;
  config.window = 128;
  const Problem problem = make_problem(config, {0, 3001}, 5);
  ServerSetting setting;
  setting.dtype = widest_dtype();
  setting.checked = false;
  const LayerResult forward = forward_of(problem, setting.dtype, device());
  const auto results = serve(problem, setting, steps_of(problem, 256), max_ranks());
  ASSERT_FALSE(results.empty());
  if (setting.dtype != DType::f64) GTEST_SKIP() << "the forward in a narrow type is no truth for another";
  ASSERT_EQ(results.front().selected, forward.selected);
  ASSERT_TRUE(within("out", results.front().out, forward.out, 1e-11));
}

// Equal keys give equal scores on different ranks, of which the lower block wins.
TEST_P(DecodeRows, TiesBetweenRanksGoToTheLowerBlock) {
  Config config = small_config();
  config.compressor = Compressor::mean;
  Problem problem = make_problem(config, {0, 120}, 6, {.pos_k = false, .pos_v = false});
  const std::size_t period = static_cast<std::size_t>(config.select_block * config.num_kv_heads * config.head_dim_qk);
  Values& keys = problem.inputs.k.cmp;
  for (std::size_t i = period; i < keys.size(); ++i) keys[i] = keys[i % period];  // every block has the same keys
  ServerSetting setting;
  setting.dtype = widest_dtype();
  check(problem, setting, steps_of(problem, 11));
}

}  // namespace
}  // namespace cpnsa::test
