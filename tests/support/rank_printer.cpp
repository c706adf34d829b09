#include "tests/support/rank_printer.hpp"

#include <gtest/gtest.h>

#include <cstdio>
#include <sstream>

namespace cpnsa::test {
namespace {

// A failure is printed by a single write, so that the lines of ranks do not mix.
class FailurePrinter final : public testing::EmptyTestEventListener {
 public:
  explicit FailurePrinter(int rank) : rank_(rank) {}

  void OnTestStart(const testing::TestInfo& test) override { test_ = &test; }
  void OnTestEnd(const testing::TestInfo&) override { test_ = nullptr; }

  // GoogleTest holds a lock here, so asking it for the current test would deadlock.
  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (!result.failed()) return;
    std::ostringstream text;
    text << "[rank " << rank_ << "] ";
    if (test_) text << test_->test_suite_name() << '.' << test_->name() << ": ";
    text << (result.file_name() ? result.file_name() : "unknown file") << ':' << result.line_number() << "\n[rank "
         << rank_ << "] " << result.message() << '\n';
    const std::string line = text.str();
    std::fwrite(line.data(), 1, line.size(), stdout);
    std::fflush(stdout);
  }

 private:
  int rank_;
  const testing::TestInfo* test_ = nullptr;
};

}  // namespace

void print_as_rank(int rank) {
  if (rank == 0) return;
  testing::TestEventListeners& listeners = testing::UnitTest::GetInstance()->listeners();
  delete listeners.Release(listeners.default_result_printer());
  delete listeners.Release(listeners.default_xml_generator());
  listeners.Append(new FailurePrinter(rank));
}

}  // namespace cpnsa::test
