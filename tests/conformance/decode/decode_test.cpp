#include "tests/conformance/decode/decode_test.hpp"

#include <cstring>

#include "cpnsa/error.hpp"
#include "cpnsa/threads/communicator.hpp"

namespace cpnsa::test {
namespace {

testing::AssertionResult same_values(const char* name, const Values& a, const Values& b) {
  if (a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0))
    return testing::AssertionSuccess();
  return testing::AssertionFailure() << name << " differs";
}

}  // namespace

LayerResult forward_of(const Problem& problem, DType dtype, const DeviceBackend& device) {
  LayerSetting setting;
  setting.dtype = dtype;
  setting.backward = false;
  const Partition partition = Partition::contiguous(problem.cu_seqlens, problem.config.select_block, 1);
  LayerResult result;
  threads::run_ranks(
      1, [&](Communicator& communicator) { result = run_rank(problem, partition, setting, device, communicator); });
  return result;
}

testing::AssertionResult same_results(const ServerResult& a, const ServerResult& b) {
  if (a.out.empty() || a.selected.empty()) return testing::AssertionFailure() << "there is no result";
  if (a.selected != b.selected) return testing::AssertionFailure() << "the indices differ";
  if (const auto same = same_values("out", a.out, b.out); !same) return same;
  return same_values("log_sum_exp", a.log_sum_exp, b.log_sum_exp);
}

void DecodeTest::SetUp() {
  AttentionTest::SetUp();
  if (IsSkipped()) return;
  try {
    device().make()->check_decode_supported(small_config(), device().dtypes.front(), 8);
  } catch (const UnsupportedError& error) {
    GTEST_SKIP() << error.what();
  }
}

std::vector<ServerResult> DecodeTest::serve(const Problem& problem, const ServerSetting& setting,
                                            const std::vector<ServerStep>& steps, int ranks) const {
  std::vector<ServerResult> results(static_cast<std::size_t>(ranks));
  std::mutex mutex;
  bool complete = true;
  on_ranks(ranks, [&](Communicator& communicator, Device& own) {
    ServerResult result = DecodeServer(problem, setting, own, communicator, steps).run();
    const std::lock_guard lock(mutex);  // ranks may be threads of this process
    results[static_cast<std::size_t>(communicator.rank())] = std::move(result);
  });
  std::vector<ServerResult> present;  // in a process that is one of several ranks, only its own
  for (ServerResult& result : results)
    if (!result.out.empty() || result.rows > 0) present.push_back(std::move(result));
  complete = !present.empty();
  if (!complete) ADD_FAILURE() << "no rank has a result";
  for (std::size_t rank = 1; rank < present.size(); ++rank)
    EXPECT_TRUE(same_results(present[rank], present[0])) << "rank " << rank << ", " << problem;
  return present;
}

void DecodeTest::check(const Problem& problem, ServerSetting setting, const std::vector<ServerStep>& steps,
                       Ranks which) {
  const Problem stored = rounded(problem, setting.dtype);
  const LayerResult forward = forward_of(stored, setting.dtype, device());
  std::vector<int> counts = rank_counts();
  if (which == Ranks::ends && counts.size() > 1) counts = {counts.front(), counts.back()};
  for (const int ranks : counts)
    for (const bool replicate : {false, true}) {
      if (replicate && ranks == 1) continue;
      setting.replicate_summaries = replicate;
      const std::vector<ServerResult> results = serve(stored, setting, steps, ranks);
      if (results.empty()) return;
      const ServerResult& result = results.front();
      const std::string where = describe(stored) + "; ranks " + std::to_string(ranks) +
                                (replicate ? ", replicated summaries" : "") + ", page " + std::to_string(setting.page);
      ASSERT_GE(result.rows, stored.tokens()) << where;
      EXPECT_EQ(result.differences, 0) << where;
      if (setting.dtype == DType::f64) {
        ASSERT_EQ(result.selected, forward.selected) << where;
        ASSERT_TRUE(within("out", result.out, forward.out, 1e-11)) << where;
      }
      const Truth truth(stored, setting.dtype, result.selected);
      ASSERT_TRUE(truth.selection_is_right()) << where;
      ASSERT_TRUE(truth.out_agrees(result.out)) << where;
    }
}

}  // namespace cpnsa::test
