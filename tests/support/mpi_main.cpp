// main() of the suites whose ranks are MPI processes. Every rank runs every test; rank 0 shows the progress, and what
// fails elsewhere is told with the rank it failed on. The launcher reports a failure when one process does.
#include <gtest/gtest.h>
#include <mpi.h>

#include <cstdio>
#include <sstream>

namespace {

/// Prints failures only, each as one write so that ranks do not mix their lines.
class FailurePrinter final : public testing::EmptyTestEventListener {
 public:
  explicit FailurePrinter(int rank) : rank_(rank) {}

  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (!result.failed()) return;
    const testing::TestInfo* test = testing::UnitTest::GetInstance()->current_test_info();
    std::ostringstream text;
    text << "[rank " << rank_ << "] ";
    if (test) text << test->test_suite_name() << '.' << test->name() << ": ";
    text << (result.file_name() ? result.file_name() : "unknown file") << ':' << result.line_number() << "\n[rank "
         << rank_ << "] " << result.message() << '\n';
    const std::string line = text.str();
    std::fwrite(line.data(), 1, line.size(), stdout);
    std::fflush(stdout);
  }

 private:
  int rank_;
};

}  // namespace

int main(int argc, char** argv) {
  int provided = 0, rank = 0;
  if (MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &provided) != MPI_SUCCESS) return 1;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  testing::InitGoogleTest(&argc, argv);
  if (rank != 0) {
    testing::TestEventListeners& listeners = testing::UnitTest::GetInstance()->listeners();
    delete listeners.Release(listeners.default_result_printer());
    delete listeners.Release(listeners.default_xml_generator());
    listeners.Append(new FailurePrinter(rank));
  }
  const int result = RUN_ALL_TESTS();
  std::fflush(stdout);
  MPI_Finalize();
  return result;
}
