// main() of the suites whose ranks are processes connected by NCCL alone; the first argument is the number of ranks.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>

#include "tests/support/nccl_job.hpp"
#include "tests/support/rank_printer.hpp"

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  ::setvbuf(stdout, nullptr, _IOLBF, 0);  // so that a killed job shows its progress
  cpnsa::test::NcclJob::start(argc > 1 ? std::atoi(argv[1]) : 1);
  cpnsa::test::print_as_rank(cpnsa::test::NcclJob::rank());
  const int result = RUN_ALL_TESTS();
  std::fflush(stdout);
  return result;
}
