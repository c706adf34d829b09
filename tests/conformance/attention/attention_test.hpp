#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <tuple>
#include <vector>

#include "tests/support/backends.hpp"
#include "tests/support/distributed.hpp"
#include "tests/support/partitions.hpp"
#include "tests/support/tolerance.hpp"

namespace cpnsa::test {

/// A suite that runs on every pair of a device and a transport that the executable was linked with.
class AttentionTest : public testing::TestWithParam<std::tuple<DeviceBackend, TransportBackend>> {
 protected:
  const DeviceBackend& device() const { return std::get<0>(GetParam()); }
  const TransportBackend& transport() const { return std::get<1>(GetParam()); }
  std::vector<int> rank_counts(int min = 1) const;  ///< the transport's numbers of ranks from `min` on
  int max_ranks() const { return rank_counts().back(); }
  /// The exchange modes that the transport has; a slow device leaves out `automatic`, which is one of the others.
  std::vector<Exchange> exchanges() const;
  DType widest_dtype() const { return device().dtypes.front(); }

  /// Whether the device supports it. Unsupported cases are counted, and the count is printed with the test.
  bool supported(const Config& config, DType dtype);

  /// Runs a layer. If it fails, the test fails and the result is empty.
  LayerResult run(const Problem& problem, const Partition& partition, const LayerSetting& setting) const;
  LayerResult run(const Problem& problem, PartitionKind kind, int ranks, const LayerSetting& setting) const;

  /// Runs the body on every rank with a device per rank; an exception fails the test.
  using Body = std::function<void(Communicator&, Device&)>;
  void on_ranks(int ranks, const Body& body) const;

  void SetUp() override;  ///< skips the test if the device does not exist here
  void TearDown() override;

 private:
  int unsupported_ = 0;
  std::string first_unsupported_;
};

/// Defines a suite of this kind: CPNSA_ATTENTION_SUITE(Name);
#define CPNSA_ATTENTION_SUITE(Suite)                                                                        \
  class Suite : public AttentionTest {};                                                                    \
  GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Suite);                                                     \
  INSTANTIATE_TEST_SUITE_P(Attention, Suite,                                                                \
                           testing::Combine(testing::ValuesIn(devices()), testing::ValuesIn(transports())), \
                           name_of_backends)

std::string name_of_backends(const testing::TestParamInfo<std::tuple<DeviceBackend, TransportBackend>>& info);

/// Passes if all results are equal bit for bit.
testing::AssertionResult same_bits(const LayerResult& a, const LayerResult& b);

/// A small layer in which every branch matters: 2 KV heads, 4 query heads, blocks of 8 tokens, 3 selected blocks.
Config small_config();

}  // namespace cpnsa::test
