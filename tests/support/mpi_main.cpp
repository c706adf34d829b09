// main() of the suites whose ranks are MPI processes. Every rank runs every test. The launcher reports a failure when
// one process does.
#include <gtest/gtest.h>
#include <mpi.h>

#include <cstdio>

#include "tests/support/rank_printer.hpp"

int main(int argc, char** argv) {
  int provided = 0, rank = 0;
  if (MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &provided) != MPI_SUCCESS) return 1;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  testing::InitGoogleTest(&argc, argv);
  cpnsa::test::print_as_rank(rank);
  const int result = RUN_ALL_TESTS();
  std::fflush(stdout);
  MPI_Finalize();
  return result;
}
