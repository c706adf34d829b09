#include "tools/command_line.hpp"

#include <gtest/gtest.h>

namespace cpnsa::test {
namespace {

TEST(CommandLine, TheDeadlineIsTheFlags) {
  const char* const bench[] = {"cpnsa", "bench", "--deadline", "7"};
  const tool::Invocation invocation = tool::parse_command_line(4, bench);
  EXPECT_EQ(invocation.problem, "");
  EXPECT_EQ(invocation.execution.deadline_or_default(), std::chrono::seconds(7));
  const char* const run[] = {"cpnsa", "run", "--in", "a", "--out", "b", "--deadline", "9"};
  EXPECT_EQ(tool::parse_command_line(8, run).execution.deadline_or_default(), std::chrono::seconds(9));
}

}  // namespace
}  // namespace cpnsa::test
