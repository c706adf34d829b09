// The worked cases in the 16-bit types of a GPU: the same indices at every number of ranks, partition, exchange mode
// and transport, and results as precise as plain ones of the type against those of double.

#include <gtest/gtest.h>

#include "cpnsa/error.hpp"
#include "cpnsa/threads/communicator.hpp"
#include "tests/support/backends.hpp"
#include "tests/support/distributed.hpp"
#include "tests/support/golden_case.hpp"
#include "tests/support/partitions.hpp"
#include "tests/support/tolerance.hpp"

namespace cpnsa::test {
namespace {

// In this process, whatever connects the others.
const TransportBackend alone{"alone", [] { return std::vector<int>{1}; },
                             [](int ranks, const auto& body) { threads::run_ranks(ranks, body); }};

using Case = std::tuple<std::string, DType>;
class Golden16Bit : public testing::TestWithParam<Case> {};

TEST_P(Golden16Bit, IsOneLayerEverywhere) {
  ASSERT_EQ(devices().size(), 1u);
  const DeviceBackend& device = devices().front();
  try {
    device.make();
  } catch (const DeviceError& error) {
    GTEST_SKIP() << error.what();
  }
  const auto& [name, dtype] = GetParam();
  const Problem problem = rounded(read_golden_case(name).problem, dtype);
  const Partition whole = make_partition(PartitionKind::contiguous, problem, 1);
  const LayerResult first = run_distributed(problem, whole, {.dtype = dtype}, device, alone);
  const Truth truth(problem, dtype, first.selected);
  ASSERT_TRUE(truth.selection_is_right());

  int compared = 0;
  for (const TransportBackend& transport : transports())
    for (const int ranks : transport.rank_counts())
      for (const PartitionKind kind : {PartitionKind::contiguous, PartitionKind::zigzag})
        for (const Exchange exchange : enum_values<Exchange>) {
          if (exchange == (transport.one_sided ? Exchange::automatic : Exchange::pull)) continue;
          SCOPED_TRACE(transport.name + ", " + std::to_string(ranks) + " ranks, " + name_of(kind) + ", " +
                       std::string(name_of(exchange)));
          const LayerResult result = run_distributed(problem, make_partition(kind, problem, ranks),
                                                     {.dtype = dtype, .exchange = exchange}, device, transport);
          ASSERT_EQ(result.selected, first.selected);
          ASSERT_TRUE(truth.out_agrees(result.out));
          ASSERT_TRUE(truth.gradients_agree(result.gradients));
          ++compared;
        }
  EXPECT_GT(compared, 0);
}

INSTANTIATE_TEST_SUITE_P(Cases, Golden16Bit,
                         testing::Combine(testing::ValuesIn(golden_case_names()),
                                          testing::Values(DType::bf16, DType::f16)),
                         [](const auto& test) {
                           return std::get<0>(test.param) + "_" + std::string(name_of(std::get<1>(test.param)));
                         });

}  // namespace
}  // namespace cpnsa::test
