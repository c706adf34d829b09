// Shapes and values at the limits of what is allowed.

#include <cmath>

#include "tests/conformance/attention/attention_test.hpp"
#include "tests/support/naive.hpp"

namespace cpnsa::test {
namespace {

CPNSA_ATTENTION_SUITE(CornerCases);

struct Shape {
  std::string name;
  std::vector<std::int64_t> lengths;
  std::function<void(Config&)> change = [](Config&) {};
  ProblemOptions options{};
};

std::vector<Shape> shapes() {
  std::vector<std::int64_t> tiny(40, 1);
  for (std::size_t i = 0; i < tiny.size(); ++i) tiny[i] = 1 + static_cast<std::int64_t>(i % 3);
  return {
      {"one token", {1}},
      {"two tokens", {2}},
      {"odd number of tokens", {157}},
      {"shorter than a summary", {7}},
      {"as long as a summary", {8}},
      {"one token more than blocks", {8 * 9 + 1}},
      {"empty documents", {0, 20, 0, 0, 33, 0}},
      {"many tiny documents", tiny},
      {"a long document among tiny ones", {1, 2, 130, 3, 1}},
      {"documents of one block", {8, 8, 8, 8, 8}},
      {"select_count above the number of blocks", {90}, [](Config& config) { config.select_count = 64; }},
      {"one selected block",
       {90},
       [](Config& config) { config.select_count = config.local_blocks = 1, config.init_blocks = 0; }},
      {"nothing forced", {120}, [](Config& config) { config.init_blocks = config.local_blocks = 0; }},
      {"everything forced", {120}, [](Config& config) { config.init_blocks = 1, config.local_blocks = 2; }},
      {"one query head per group", {100}, [](Config& config) { config.num_q_heads = config.num_kv_heads = 3; }},
      {"one KV head", {100}, [](Config& config) { config.num_q_heads = 5, config.num_kv_heads = 1; }},
      {"values wider than keys", {100}, [](Config& config) { config.head_dim_qk = 8, config.head_dim_v = 24; }},
      {"window of one token", {100}, [](Config& config) { config.window = 1; }},
      {"window longer than the sequence", {100}, [](Config& config) { config.window = 1 << 30; }},
      {"summaries that do not overlap", {100}, [](Config& config) { config.compress_stride = 8; }},
      {"one summary per token", {40}, [](Config& config) { config.compress_block = config.compress_stride = 1; }},
      {"summaries of half a block", {100}, [](Config& config) { config.select_block = 16; }},
      {"separate tensors", {50, 77}, [](Config&) {}, {.shared_k = false, .shared_v = false}},
      {"shared keys alone", {50, 77}, [](Config&) {}, {.shared_v = false}},
      {"no position encoding", {50, 77}, [](Config&) {}, {.pos_k = false, .pos_v = false}},
  };
}

TEST_P(CornerCases, EveryShapeAgreesWithTheOracle) {
  const DType dtype = widest_dtype();
  std::uint64_t seed = 1;
  for (const Shape& shape : shapes())
    for (const Compressor compressor : {Compressor::mean, Compressor::linear, Compressor::mlp}) {
      Config config = small_config();
      config.compressor = compressor;
      shape.change(config);
      const Problem problem = rounded(make_problem(config, cu_seqlens_of(shape.lengths), seed++, shape.options), dtype);
      SCOPED_TRACE(shape.name + ": " + describe(problem));
      if (!supported(config, dtype)) continue;
      std::optional<Truth> truth;
      std::vector<std::int32_t> selected;
      for (const int ranks : rank_counts()) {
        const PartitionKind kind = partition_kinds[(seed + static_cast<std::uint64_t>(ranks)) % 4];
        SCOPED_TRACE(name_of(kind) + ", " + std::to_string(ranks) + " ranks");
        const LayerResult result = run(problem, kind, ranks, {.dtype = dtype});
        if (!truth) {
          selected = result.selected;
          truth.emplace(problem, dtype, selected);
          ASSERT_TRUE(truth->selection_is_right());
        }
        ASSERT_EQ(result.selected, selected);
        ASSERT_TRUE(truth->out_agrees(result.out));
        ASSERT_TRUE(truth->gradients_agree(result.gradients));
      }
    }
}

// One rank owns all tokens, for each rank in turn; the others own nothing and still take part.
TEST_P(CornerCases, OneRankOwnsEverything) {
  const DType dtype = widest_dtype();
  const Problem problem = rounded(make_problem(small_config(), {0, 61, 100}, 5), dtype);
  if (!supported(problem.config, dtype)) return;
  const Truth truth(problem, dtype, run(problem, PartitionKind::contiguous, max_ranks(), {.dtype = dtype}).selected);
  for (const int ranks : rank_counts(2))
    for (int owner = 0; owner < ranks; ++owner)
      for (const Exchange exchange : exchanges()) {
        std::vector<std::vector<TokenRange>> ranges(static_cast<std::size_t>(ranks));
        ranges[static_cast<std::size_t>(owner)] = {{0, problem.tokens()}};
        const auto partition = Partition::custom(problem.cu_seqlens, problem.config.select_block, ranges);
        const LayerResult result = run(problem, partition, {.dtype = dtype, .exchange = exchange});
        ASSERT_TRUE(truth.out_agrees(result.out)) << "rank " << owner << " of " << ranks;
        ASSERT_TRUE(truth.gradients_agree(result.gradients)) << "rank " << owner << " of " << ranks;
      }
}

// Equal keys make equal scores: the lower blocks are selected, for every number of ranks.
TEST_P(CornerCases, TiesGoToTheLowerBlocks) {
  for (const DType dtype : device().dtypes)
    for (const double size : {0.0, 0.7}) {
      Config config = small_config();
      config.init_blocks = 0;
      config.local_blocks = 1;
      config.select_count = 4;
      Problem problem = make_problem(config, {0, 117, 200}, 3, {.pos_k = false});
      const std::int64_t width = config.num_kv_heads * config.head_dim_qk;
      for (std::size_t i = 0; i < problem.inputs.k.cmp.size(); ++i)
        problem.inputs.k.cmp[i] = size * static_cast<double>(i % static_cast<std::size_t>(width) % 5);
      problem = rounded(std::move(problem), dtype);
      SCOPED_TRACE(std::string(name_of(dtype)) + ", " + describe(problem));
      if (!supported(config, dtype)) continue;
      std::vector<std::int32_t> expected;
      for (std::int64_t token = 0; token < problem.tokens(); ++token) {
        const std::int64_t position = token - document_of(problem.cu_seqlens, token).begin;
        // With s = l / 2 = m / 2 the summaries of a block have weights 1, 2, 1. Block 0 lacks the first of them, and
        // the last blocks those that are not yet visible. So blocks 1, 2, ... have equal scores, and block 0 is the
        // next.
        Values scores(static_cast<std::size_t>(position / config.select_block + 1), 0);
        for (std::int64_t i = 0; i * config.compress_stride + config.compress_block - 1 <= position; ++i)
          for (std::size_t block = 0; block < scores.size(); ++block)
            scores[block] += naive::overlap_weight<double>(config, i, static_cast<std::int64_t>(block));
        const auto blocks = naive::select(config, position, scores).blocks;
        for (std::int64_t group = 0; group < config.num_kv_heads; ++group)
          expected.insert(expected.end(), blocks.begin(), blocks.end());
      }
      for (const int ranks : rank_counts())
        for (const PartitionKind kind : partition_kinds) {
          const LayerResult result = run(problem, kind, ranks, {.dtype = dtype, .backward = false});
          ASSERT_EQ(result.selected, expected) << name_of(kind) << ", " << ranks << " ranks";
        }
    }
}

TEST_P(CornerCases, LargeLogitsDoNotOverflow) {
  for (const DType dtype : device().dtypes) {
    Problem problem = make_problem(small_config(), {0, 150}, 8);
    for (double& value : problem.inputs.q) value *= 300;
    problem = rounded(std::move(problem), dtype);
    SCOPED_TRACE(std::string(name_of(dtype)) + ", " + describe(problem));
    if (!supported(problem.config, dtype)) continue;
    for (const int ranks : rank_counts()) {
      const LayerResult result = run(problem, PartitionKind::zigzag, ranks, {.dtype = dtype});
      const Truth truth(problem, dtype, result.selected);
      ASSERT_TRUE(truth.selection_is_right());
      ASSERT_TRUE(truth.out_agrees(result.out));
      ASSERT_TRUE(truth.gradients_agree(result.gradients));
      if (ranks == 2) break;
    }
  }
}

bool all_finite(const Values& values) {
  return std::all_of(values.begin(), values.end(), [](double value) { return std::isfinite(value); });
}

TEST_P(CornerCases, ExtremeGatesStayFinite) {
  for (const DType dtype : device().dtypes) {
    Problem problem = make_problem(small_config(), {0, 60}, 9);
    for (std::size_t i = 0; i < problem.inputs.gate.size(); ++i) problem.inputs.gate[i] = i % 2 ? 30000 : -30000;
    if (!supported(problem.config, dtype)) continue;
    const LayerResult result = run(problem, PartitionKind::contiguous, max_ranks(), {.dtype = dtype});
    EXPECT_TRUE(all_finite(result.out));
    EXPECT_TRUE(all_finite(result.gradients.gate));
  }
}

Values& poisoned_tensor(Problem& problem, const std::string& name) {
  Values* found = nullptr;
  for_each_tensor(
      [&](const schema::Tensor& tensor, Values& values) {
        if (tensor.name.view() == name) found = &values;
      },
      problem.inputs);
  return *found;
}

// A NaN in one element of one tensor reaches exactly the outputs that depend on it by the formulas. A device with
// zero_masked may also spread a NaN of a value to other queries of the same tile; it never drops one.
TEST_P(CornerCases, NanGoesWhereTheMathsSendsIt) {
  const DType dtype = widest_dtype();
  for (const std::string name : {"q", "k_cmp", "v_cmp", "k_slc", "v_slc", "k_win", "v_win", "gate", "compress_k_w1"}) {
    Problem problem =
        rounded(make_problem(small_config(), {0, 90, 130}, 4, {.shared_k = false, .shared_v = false}), dtype);
    if (!supported(problem.config, dtype)) continue;
    Values& values = poisoned_tensor(problem, name);
    values[values.size() / 3] = std::nan("");
    const std::vector<std::int32_t> expected =
        run(problem, PartitionKind::contiguous, max_ranks(), {.dtype = dtype}).selected;
    ASSERT_TRUE(dtype != DType::f64 || expected == oracle_forward(problem, {dtype, false}).selected);
    const Values out = oracle_forward(problem, {dtype, false}, &expected).out;
    for (const int ranks : rank_counts())
      for (const Exchange exchange : exchanges()) {
        SCOPED_TRACE("NaN in " + name + ", " + std::to_string(ranks) + " ranks, " + std::string(name_of(exchange)));
        const LayerResult result = run(problem, PartitionKind::zigzag, ranks, {.dtype = dtype, .exchange = exchange});
        ASSERT_EQ(result.selected, expected);
        ASSERT_EQ(result.out.size(), out.size());
        const bool may_spread = device().zero_masked && name.starts_with("v_");
        for (std::size_t i = 0; i < out.size(); ++i)
          ASSERT_TRUE(std::isnan(result.out[i]) == std::isnan(out[i]) || (may_spread && !std::isnan(out[i])))
              << "element " << i;
      }
  }
}

// A query whose scores are NaN: those of blocks that a summary covers; the last block has none yet, and its score of 0
// ranks above them. Equal NaNs go to the lower blocks.
TEST_P(CornerCases, NanRanksBelowEveryNumber) {
  const DType dtype = widest_dtype();
  Config config = small_config();
  config.init_blocks = config.local_blocks = 0;
  if (!supported(config, dtype)) return;
  Problem problem = rounded(make_problem(config, {0, 90}, 4), dtype);
  const std::int64_t row = 8 * config.select_block + 1, width = config.num_q_heads * config.head_dim_qk;
  problem.inputs.q[static_cast<std::size_t>(row * width)] = std::nan("");  // of query head 0, and so of KV head 0
  for (const int ranks : rank_counts()) {
    const std::vector<std::int32_t> selected = run(problem, PartitionKind::zigzag, ranks, {.dtype = dtype}).selected;
    const auto first = selected.begin() + row * config.num_kv_heads * config.select_count;
    EXPECT_EQ(std::vector<std::int32_t>(first, first + config.select_count), (std::vector<std::int32_t>{0, 1, 8}));
  }
}

TEST_P(CornerCases, InfinitiesAndNanEverywhereStillEnd) {
  for (const DType dtype : device().dtypes)
    for (const double value : {HUGE_VAL, -HUGE_VAL, std::nan("")}) {
      Problem problem = make_problem(small_config(), {0, 90}, 6);
      if (!supported(problem.config, dtype)) continue;
      Random random(7);
      for_each_token_tensor(
          [&](const schema::Tensor&, Values& values) {
            for (double& element : values)
              if (random.chance(0.05)) element = value;
          },
          problem.inputs);
      const LayerResult one = run(problem, PartitionKind::contiguous, rank_counts().front(), {.dtype = dtype});
      const LayerResult many = run(problem, PartitionKind::custom, max_ranks(), {.dtype = dtype});
      EXPECT_EQ(one.selected, many.selected);
    }
}

}  // namespace
}  // namespace cpnsa::test
