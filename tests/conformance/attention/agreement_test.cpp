// Forward and backward of random layers compared with the oracle, for every number of ranks, partition and exchange
// mode.

#include "tests/conformance/attention/attention_test.hpp"
#include "tests/support/seeds.hpp"

namespace cpnsa::test {
namespace {

CPNSA_ATTENTION_SUITE(Agreement);

TEST_P(Agreement, EverySettingComputesTheLayer) {
  for (const std::uint64_t seed : seeds(40)) {
    const DType dtype = widest_dtype();
    const Problem problem = rounded(random_problem(seed, 150, device().dim_step), dtype);
    SCOPED_TRACE(describe(problem));
    if (!supported(problem.config, dtype)) continue;
    std::optional<Truth> truth;
    std::vector<std::int32_t> selected;
    for (const int ranks : rank_counts())
      for (const PartitionKind kind : partition_kinds)
        for (const Exchange exchange : exchanges()) {
          SCOPED_TRACE(name_of(kind) + ", " + std::to_string(ranks) + " ranks, " + std::string(name_of(exchange)));
          const LayerResult result = run(problem, kind, ranks, {.dtype = dtype, .exchange = exchange});
          if (!truth) {
            selected = result.selected;
            truth.emplace(problem, dtype, selected);
            ASSERT_TRUE(truth->selection_is_right());
          }
          ASSERT_EQ(result.selected, selected) << "the selection depends on the setting";
          ASSERT_TRUE(truth->out_agrees(result.out));
          ASSERT_TRUE(truth->gradients_agree(result.gradients));
        }
  }
}

// In every type of the device, the error is at most a small multiple of that of a plain implementation.
TEST_P(Agreement, EveryTypeIsAsPreciseAsItMayBe) {
  for (const DType dtype : device().dtypes)
    for (const std::uint64_t seed : seeds(20)) {
      const Problem problem = rounded(random_problem(1000 + seed, 150, device().dim_step), dtype);
      SCOPED_TRACE(std::string(name_of(dtype)) + ", " + describe(problem));
      if (!supported(problem.config, dtype)) continue;
      std::optional<Truth> truth;
      std::vector<std::int32_t> selected;
      for (const int ranks : rank_counts()) {
        SCOPED_TRACE(std::to_string(ranks) + " ranks");
        const PartitionKind kind = partition_kinds[(seed + static_cast<std::uint64_t>(ranks)) % 4];
        const LayerResult result = run(problem, kind, ranks, {.dtype = dtype});
        if (!truth) {
          selected = result.selected;
          truth.emplace(problem, dtype, selected);
          ASSERT_TRUE(truth->selection_is_right());
        }
        ASSERT_EQ(result.selected, selected) << "the selection depends on the setting";
        ASSERT_TRUE(truth->out_agrees(result.out));
        ASSERT_TRUE(truth->gradients_agree(result.gradients));
      }
    }
}

TEST_P(Agreement, GradientsMayHaveTheLayersType) {
  for (const DType dtype : device().dtypes)
    for (const std::uint64_t seed : seeds(6)) {
      const Problem problem = rounded(random_problem(2000 + seed, 100, device().dim_step), dtype);
      SCOPED_TRACE(std::string(name_of(dtype)) + ", " + describe(problem));
      if (!supported(problem.config, dtype)) continue;
      const int ranks = max_ranks();
      const LayerResult wide = run(problem, PartitionKind::custom, ranks, {.dtype = dtype});
      const LayerResult narrow = run(problem, PartitionKind::custom, ranks,
                                     {.dtype = dtype, .gradient_dtype = dtype, .parameter_gradient_dtype = dtype});
      const Truth truth(problem, dtype, narrow.selected);
      ASSERT_TRUE(truth.gradients_agree(narrow.gradients, dtype, dtype));
      for_each_tensor(
          [&](const schema::Tensor& tensor, const Values& of_wide, const Values& of_narrow) {
            EXPECT_EQ(round_to(dtype, of_wide), of_narrow)
                << tensor.gradient_name().view() << " is not the sum rounded once";
          },
          wide.gradients, narrow.gradients);
    }
}

TEST_P(Agreement, TwoRunsAreEqualToTheLastBit) {
  for (const DType dtype : device().dtypes)
    for (const std::uint64_t seed : seeds(4)) {
      const Problem problem = rounded(random_problem(3000 + seed, 200, device().dim_step), dtype);
      SCOPED_TRACE(std::string(name_of(dtype)) + ", " + describe(problem));
      if (!supported(problem.config, dtype)) continue;
      for (const int ranks : rank_counts())
        for (const Exchange exchange : exchanges()) {
          const PartitionKind kind = partition_kinds[seed % 4];
          const LayerSetting setting{.dtype = dtype, .exchange = exchange};
          ASSERT_TRUE(same_bits(run(problem, kind, ranks, setting), run(problem, kind, ranks, setting)))
              << name_of(kind) << ", " << ranks << " ranks, " << name_of(exchange);
        }
    }
}

}  // namespace
}  // namespace cpnsa::test
