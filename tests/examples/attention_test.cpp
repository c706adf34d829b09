#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/tools/command.hpp"

namespace cpnsa::test {
namespace {

// The line with the norms, which no number of ranks may change.
std::string norms(const std::string& ranks) {
  const Outcome outcome = run_process({CPNSA_TEST_ATTENTION_EXAMPLE, ranks});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_EQ(outcome.err, "");
  const std::size_t begin = outcome.out.find("norm of out ");
  return begin == std::string::npos ? "no norm: " + outcome.out : outcome.out.substr(begin);
}

TEST(AttentionExample, PrintsTheSameNormsForAnyNumberOfRanks) {
  const std::string expected = norms("1");
  EXPECT_THAT(expected, testing::MatchesRegex("norm of out [0-9.]+, of dk [0-9.]+: .*\n"));
  EXPECT_EQ(norms("3"), expected);
  EXPECT_EQ(norms("4"), expected);
}

TEST(AttentionExample, RefusesWhatIsNoNumberOfRanks) {
  const Outcome outcome = run_process({CPNSA_TEST_ATTENTION_EXAMPLE, "none"});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_EQ(outcome.error_lines().size(), 1u) << outcome.err;
}

}  // namespace
}  // namespace cpnsa::test
