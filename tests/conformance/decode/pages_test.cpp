// The results do not depend on the batch, on the pages, or on chunks; pages are shared, given back and cut back.

#include <algorithm>

#include "tests/conformance/decode/decode_test.hpp"

namespace cpnsa::test {
namespace {

CPNSA_DECODE_SUITE(DecodePages);

Problem with_documents(const std::vector<std::int64_t>& lengths, bool shared = true) {
  return make_problem(small_config(), cu_seqlens_of(lengths), 7, {.shared_k = shared, .shared_v = shared});
}

/// The problem of one document of another.
Problem only(const Problem& problem, std::int64_t document) {
  Problem one = problem;
  const std::int64_t begin = problem.cu_seqlens[static_cast<std::size_t>(document)],
                     end = problem.cu_seqlens[static_cast<std::size_t>(document) + 1];
  one.cu_seqlens = {0, end - begin};
  for_each_token_tensor(
      [&](auto, Values& values) {
        if (values.empty()) return;
        const auto width = static_cast<std::ptrdiff_t>(values.size()) / problem.tokens();
        values = Values(values.begin() + begin * width, values.begin() + end * width);
      },
      one.inputs);
  return one;
}

testing::AssertionResult rows_equal(const ServerResult& all, const ServerResult& one, std::int64_t first,
                                    std::int64_t tokens_of_all, std::int64_t tokens) {
  const auto equal = [&](const auto& a, const auto& b) {
    const auto width = static_cast<std::ptrdiff_t>(a.size()) / tokens_of_all;
    return static_cast<std::ptrdiff_t>(b.size()) == width * tokens && width > 0 &&
           std::equal(b.begin(), b.end(), a.begin() + first * width);
  };
  if (equal(all.out, one.out) && equal(all.selected, one.selected) && equal(all.log_sum_exp, one.log_sum_exp))
    return testing::AssertionSuccess();
  return testing::AssertionFailure() << "the bits of a sequence depend on the batch";
}

TEST_P(DecodePages, ASequenceHasTheSameBitsInEveryBatch) {
  const Problem problem = with_documents({37, 80, 8, 1, 55});
  for (const DType dtype : device().dtypes)
    for (const int ranks : rank_counts()) {
      ServerSetting setting;
      setting.dtype = dtype;
      const auto all = serve(rounded(problem, dtype), setting, steps_of(problem, 9), ranks);
      ASSERT_FALSE(all.empty());
      for (const std::int64_t document : {0, 1, 4}) {
        const Problem one = rounded(only(problem, document), dtype);
        setting.seed = static_cast<std::uint64_t>(document) + 50;  // other pages, another slot
        const auto alone = serve(one, setting, steps_of(one, 9), ranks);
        ASSERT_FALSE(alone.empty());
        const std::int64_t first = problem.cu_seqlens[static_cast<std::size_t>(document)];
        EXPECT_TRUE(rows_equal(all.front(), alone.front(), first, problem.tokens(), one.tokens()))
            << "document " << document << ", " << name_of(dtype) << ", ranks " << ranks;
      }
    }
}

TEST_P(DecodePages, ChunksOfWholeBlocksGiveTheSameBits) {
  const Problem problem = with_documents({100, 64});
  for (const DType dtype : device().dtypes)
    for (const int ranks : rank_counts()) {
      ServerSetting setting;
      setting.dtype = dtype;
      const Problem stored = rounded(problem, dtype);
      const auto whole = serve(stored, setting, steps_of(stored, 100), ranks);
      const auto chunks = serve(stored, setting, steps_of(stored, 24), ranks);
      ASSERT_FALSE(whole.empty() || chunks.empty());
      EXPECT_TRUE(same_results(whole.front(), chunks.front())) << name_of(dtype) << ", ranks " << ranks;
    }
}

/// Document 1 begins with the first `shared` tokens of document 0.
Problem with_common_prefix(std::int64_t shared) {
  Problem problem = with_documents({100, 90});
  for_each_token_tensor(
      [&](auto, Values& values) {
        if (values.empty()) return;
        const auto width = static_cast<std::ptrdiff_t>(values.size()) / problem.tokens();
        std::copy_n(values.begin(), shared * width, values.begin() + 100 * width);
      },
      problem.inputs);
  return problem;
}

TEST_P(DecodePages, SequencesShareThePagesOfACommonPrefix) {
  for (const std::int64_t shared : {1, 5, 8, 16, 17, 47, 48, 60}) {
    const Problem problem = with_common_prefix(shared);
    ServerSetting setting;
    setting.dtype = widest_dtype();
    setting.page = 16;
    setting.summary_page = 4;
    std::vector<ServerStep> steps{{{{0, 0, 70}}},
                                  {{{0, 70, 1}, {1, shared, 3}}, {{0, 1, shared}}},
                                  {{{0, 71, 29}, {1, shared + 3, 87 - shared}}}};
    for (const int ranks : rank_counts()) {
      const LayerResult forward = forward_of(problem, setting.dtype, device());
      const auto results = serve(problem, setting, steps, ranks);
      ASSERT_FALSE(results.empty());
      // The shared tokens of document 1 are never computed.
      const auto row_width = static_cast<std::ptrdiff_t>(forward.out.size()) / problem.tokens();
      Values expected = forward.out;
      std::fill_n(expected.begin() + 100 * row_width, shared * row_width, 0.0);
      EXPECT_EQ(results.front().rows, problem.tokens() - shared);
      EXPECT_TRUE(within("out", results.front().out, expected, setting.dtype == DType::f64 ? 1e-11 : 0.02))
          << shared << " tokens shared, ranks " << ranks;
    }
  }
}

// A sequence that was cut back into pages that it shares gets copies of them before it writes.
TEST_P(DecodePages, CuttingBackIntoSharedPagesLeavesTheOtherSequenceAlone) {
  const Problem problem = with_common_prefix(60);
  ServerSetting setting;
  setting.dtype = widest_dtype();
  setting.summary_page = 4;
  std::vector<ServerStep> steps{
      {{{0, 0, 70}}}, {{{0, 70, 1}, {1, 60, 5}}, {{0, 1, 60}}}, {{{0, 71, 1}, {1, 13, 77}}}, {{{0, 72, 28}}}};
  for (const int ranks : rank_counts()) {
    const LayerResult forward = forward_of(problem, setting.dtype, device());
    const auto results = serve(problem, setting, steps, ranks);
    ASSERT_FALSE(results.empty());
    const auto row_width = static_cast<std::ptrdiff_t>(forward.out.size()) / problem.tokens();
    Values expected = forward.out;
    std::fill_n(expected.begin() + 100 * row_width, 13 * row_width, 0.0);
    EXPECT_TRUE(within("out", results.front().out, expected, setting.dtype == DType::f64 ? 1e-11 : 0.02));
  }
}

// With keys and values for each branch, those of the compressed and the window branch are needed for a while only.
TEST_P(DecodePages, PagesThatNoLaterStepReadsAreGivenBack) {
  const Problem problem = with_documents({130, 90, 7}, false);
  ServerSetting setting;
  setting.dtype = widest_dtype();
  setting.drops_pages = true;
  check(problem, setting, steps_of(problem, 7));
}

TEST_P(DecodePages, StepsSendTheMessagesAndBytesThatThePlanPredicts) {
  const Problem problem = with_documents({50, 33});
  const std::vector<ServerStep> steps = steps_of(problem, 6);
  for (const int ranks : rank_counts())
    for (const bool replicate : {false, true}) {
      ServerSetting setting;
      setting.dtype = widest_dtype();
      setting.replicate_summaries = replicate;
      setting.checked = false;
      for (const ServerResult& result : serve(problem, setting, steps, ranks)) {
        const auto count = static_cast<std::int64_t>(steps.size());
        EXPECT_EQ(result.statistics.steps, count);
        EXPECT_EQ(result.statistics.messages, ranks == 1 ? 0 : replicate ? count : 3 * count);
        std::int64_t received = 0, expected = 0;
        for (const std::int64_t bytes : result.statistics.bytes_received) received += bytes;
        // The first step compares the ranks' parameters by two agreements.
        const std::int64_t control = result.statistics.bytes_received.back();
        EXPECT_EQ(control, 2 * (ranks - 1) * static_cast<std::int64_t>(agreement_bytes));
        received -= control;
        EXPECT_EQ(received, result.expected_bytes);
        // Written out: what the parts of a message hold, each a multiple of 16 bytes.
        const std::int64_t element = setting.dtype == DType::f64 ? 8 : 4, heads = problem.config.num_q_heads;
        const auto padded = [](std::int64_t bytes) { return (bytes + 15) / 16 * 16; };
        for (const ServerStep& step : steps) {
          std::int64_t tokens = 0;
          for (const Piece& piece : step.pieces) tokens += piece.count;
          const std::int64_t sums = padded(tokens * heads * element),
                             outs = padded(tokens * heads * problem.config.head_dim_v * element),
                             picks = tokens * problem.config.num_kv_heads * problem.config.select_count;
          expected += replicate ? 2 * outs + 2 * sums
                                : 2 * sums + padded(picks * element) + padded(picks * 4) + 2 * outs + sums;
        }
        EXPECT_EQ(received, (ranks - 1) * expected);
      }
    }
}

}  // namespace
}  // namespace cpnsa::test
