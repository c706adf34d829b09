#pragma once

#include <mutex>

#include "tests/conformance/attention/attention_test.hpp"
#include "tests/support/decode_server.hpp"

namespace cpnsa::test {

/// The output and the selection of the library's forward on one rank, in the order of the packed sequence.
LayerResult forward_of(const Problem& problem, DType dtype, const DeviceBackend& device);

/// A suite that decodes on every pair of a device and a transport; devices that do not decode skip it.
class DecodeTest : public AttentionTest {
 protected:
  void SetUp() override;

  /// Runs a server on `ranks` ranks, which must all have the same result; returns that of rank 0 with `statistics` of
  /// each rank. If it fails, the test fails and the result is empty.
  std::vector<ServerResult> serve(const Problem& problem, const ServerSetting& setting,
                                  const std::vector<ServerStep>& steps, int ranks) const;
  enum class Ranks { all, ends };  ///< of the transport's numbers of ranks: each, or the smallest and the largest
  /// Serves on these numbers of ranks, with sharded and with replicated summaries, and compares with the oracle and
  /// with the forward.
  void check(const Problem& problem, ServerSetting setting, const std::vector<ServerStep>& steps,
             Ranks ranks = Ranks::all);
};

#define CPNSA_DECODE_SUITE(Suite)                                                                           \
  class Suite : public DecodeTest {};                                                                       \
  GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Suite);                                                     \
  INSTANTIATE_TEST_SUITE_P(Decode, Suite,                                                                   \
                           testing::Combine(testing::ValuesIn(devices()), testing::ValuesIn(transports())), \
                           name_of_backends)

/// Passes if all results of a server are equal bit for bit.
testing::AssertionResult same_results(const ServerResult& a, const ServerResult& b);

}  // namespace cpnsa::test
