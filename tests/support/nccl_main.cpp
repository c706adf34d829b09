// main() of the suites whose ranks are processes that meet through NCCL alone; their number is the first argument.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>

#include "tests/support/nccl_job.hpp"
#include "tests/support/rank_printer.hpp"

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  ::setvbuf(stdout, nullptr, _IOLBF, 0);  // a job that is ended shows how far it came
  cpnsa::test::NcclJob::start(argc > 1 ? std::atoi(argv[1]) : 1);
  cpnsa::test::print_as_rank(cpnsa::test::NcclJob::rank());
  const int result = RUN_ALL_TESTS();
  std::fflush(stdout);
  return result;
}
