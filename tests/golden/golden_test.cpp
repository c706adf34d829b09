// The worked cases at every number of ranks, partition and exchange mode: what an implementation written elsewhere
// found.

#include <gtest/gtest.h>

#include "tests/support/backends.hpp"
#include "tests/support/distributed.hpp"
#include "tests/support/golden_case.hpp"
#include "tests/support/partitions.hpp"
#include "tests/support/tolerance.hpp"

namespace cpnsa::test {
namespace {

constexpr double rtol = 2e-6;  // the files hold float32
// What is zero in theory is rounding noise in the files, to be measured against the other gradients.
constexpr double noise = 1e-13;
// Scores closer than this need not be told apart.
constexpr double margin = 1e-8;

bool same_indices(const GoldenCase& golden, const std::vector<std::int32_t>& selected) {
  if (selected.size() != golden.selected.size()) return false;
  const auto places = static_cast<std::size_t>(golden.problem.config.select_count);
  for (std::size_t row = 0; row < golden.margin.size(); ++row)
    if (golden.margin[row] > margin && !std::equal(selected.begin() + static_cast<std::ptrdiff_t>(row * places),
                                                   selected.begin() + static_cast<std::ptrdiff_t>((row + 1) * places),
                                                   golden.selected.begin() + static_cast<std::ptrdiff_t>(row * places)))
      return false;
  return true;
}

void check(const GoldenCase& golden, const Partition& partition, Exchange exchange, const DeviceBackend& device,
           const TransportBackend& transport) {
  const LayerResult result =
      run_distributed(golden.problem, partition, {.dtype = DType::f64, .exchange = exchange}, device, transport);
  EXPECT_TRUE(same_indices(golden, result.selected));
  EXPECT_TRUE(within("out", result.out, golden.out, rtol));
  const double floor = noise * norm_of(golden.gradients);
  for_each_tensor(
      [&](const schema::Tensor& tensor, const Values& found, const Values& expected) {
        EXPECT_TRUE(within(tensor.gradient_name().str(), found, expected, rtol, floor));
      },
      result.gradients, golden.gradients);
}

class Golden : public testing::TestWithParam<std::string> {};

TEST_P(Golden, AgreesEverywhere) {
  const GoldenCase golden = read_golden_case(GetParam());
  for (const DeviceBackend& device : devices()) {
    if (device.dtypes.front() != DType::f64) continue;
    for (const TransportBackend& transport : transports())
      for (const int ranks : transport.rank_counts())
        for (const PartitionKind kind : {PartitionKind::contiguous, PartitionKind::zigzag})
          for (const Exchange exchange : enum_values<Exchange>) {
            if (exchange == Exchange::pull && !transport.one_sided) continue;
            SCOPED_TRACE(device.name + ", " + transport.name + ", " + std::to_string(ranks) + " ranks, " +
                         name_of(kind) + ", " + std::string(name_of(exchange)));
            check(golden, make_partition(kind, golden.problem, ranks), exchange, device, transport);
          }
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, Golden, testing::ValuesIn(golden_case_names()),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace cpnsa::test
