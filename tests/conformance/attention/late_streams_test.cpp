// Forward and backward on a device whose streams run late and out of order: every dependency between streams that a
// step needs is stated.

#include "tests/conformance/attention/attention_test.hpp"
#include "tests/support/late_device.hpp"
#include "tests/support/seeds.hpp"

namespace cpnsa::test {
namespace {

DeviceBackend late() {
  return {"late", [] { return std::make_unique<LateDevice>(); }, {DType::f64}};
}

TransportBackend as_threads() {
  for (const TransportBackend& transport : transports())
    if (transport.name == "threads") return transport;
  throw std::logic_error("this executable has no threads");
}

TEST(LateStreams, EverySettingComputesTheLayer) {
  for (const std::uint64_t seed : seeds(6)) {
    const Problem problem = random_problem(500 + seed, 120);
    SCOPED_TRACE(describe(problem));
    std::optional<Truth> truth;
    for (const int ranks : {1, 2, 3})
      for (const Exchange exchange : {Exchange::fetch, Exchange::gather, Exchange::pull}) {
        LayerSetting setting{.exchange = exchange, .recompute_branches = seed % 2 == 0};
        setting.refetch_blocks = seed % 3 != 0;
        const LayerResult result = run_distributed(problem, make_partition(PartitionKind::zigzag, problem, ranks),
                                                   setting, late(), as_threads());
        if (!truth) truth.emplace(problem, DType::f64, result.selected);
        ASSERT_TRUE(truth->selection_is_right()) << ranks;
        ASSERT_TRUE(truth->out_agrees(result.out)) << ranks;
        ASSERT_TRUE(truth->gradients_agree(result.gradients)) << ranks;
      }
  }
}

TEST(LateStreams, VariantsComputeTheLayer) {
  for (const std::uint64_t seed : seeds(2)) {
    const Problem problem =
        make_problem(small_config(), {0, 50, 120}, seed, {.q_cmp = true, .sinks = true, .rotated_pairs = 4});
    const LayerResult result =
        run_distributed(problem, make_partition(PartitionKind::zigzag, problem, 3), {}, late(), as_threads());
    const Truth truth(problem, DType::f64, result.selected);
    ASSERT_TRUE(truth.selection_is_right());
    ASSERT_TRUE(truth.out_agrees(result.out));
    ASSERT_TRUE(truth.gradients_agree(result.gradients));
  }
}

}  // namespace
}  // namespace cpnsa::test
