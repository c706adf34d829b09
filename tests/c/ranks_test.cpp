// What one rank does wrong through the C interface reaches the others.

#include <functional>
#include <thread>

#include "tests/c/step.hpp"

namespace cpnsa::test {
namespace {

using ::testing::HasSubstr;

/// Runs the body as each of the ranks, which share nothing but their communicators.
void on_ranks(int ranks, const std::function<void(int, Step&)>& body) {
  std::vector<cpnsa_communicator> communicators(static_cast<std::size_t>(ranks));
  check_c(cpnsa_communicator_create_threads(ranks, communicators.data()));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank)
    threads.emplace_back([&, rank] {
      Step step(communicators[static_cast<std::size_t>(rank)]);
      body(rank, step);
    });
  for (std::thread& thread : threads) thread.join();
  for (const cpnsa_communicator communicator : communicators) check_c(cpnsa_communicator_destroy(communicator));
}

// What only this interface can see on one rank reaches the other all the same, and the next call is none the worse.
TEST(CRanks, AMistakeOnOneRankIsAnErrorOnEvery) {
  on_ranks(2, [](int rank, Step& step) {
    step.options.dtype = rank == 1 ? 99 : CPNSA_F32;
    EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, step.create(), HasSubstr("dtype: found 99"));
    step.options.dtype = CPNSA_F32;
    const cpnsa_partition partition = step.partition;
    if (rank == 0) step.partition = nullptr;
    EXPECT_STATUS(rank == 0 ? CPNSA_ERROR_HANDLE : CPNSA_ERROR_ARGUMENT, step.create(), HasSubstr("partition"));
    step.partition = partition;
    check_c(step.create());

    const cpnsa_saved saved = step.saved;
    for (int repetition = 0; repetition < 2; ++repetition) {
      if (rank == 1) step.inputs.struct_size = 3;
      EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, step.forward(), HasSubstr("inputs.struct_size"));
      step.inputs.struct_size = sizeof(cpnsa_tensors);
      EXPECT_TRUE(step.out_memory->untouched() || repetition > 0);
      if (rank == 0) step.inputs.k.win.dtype = 17;
      EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, step.forward(), HasSubstr("k_win.dtype"));
      if (rank == 0) step.inputs.k.win.dtype = CPNSA_F32;
      check_c(step.forward());
      if (rank == 0) step.saved = nullptr;
      EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, step.backward(), HasSubstr("saved: found NULL"));
      step.saved = saved;
      check_c(step.backward());
    }
  });
}

TEST(CRanks, RanksThatDisagree) {
  on_ranks(2, [](int rank, Step& step) {
    step.config.window = 6 + rank;
    EXPECT_STATUS(CPNSA_ERROR_MISMATCH, step.create(), HasSubstr("window=7"));
    step.config.window = 6;
    check_c(step.create());
    check_c(step.forward());
    EXPECT_STATUS(CPNSA_ERROR_MISMATCH, rank == 0 ? step.forward() : step.backward(), HasSubstr("backward"));
  });
}

TEST(CRanks, AnAbortReleasesAndADeadlineEnds) {
  on_ranks(2, [](int rank, Step& step) {
    if (rank == 1) {
      check_c(cpnsa_communicator_abort(step.communicator, "the disk is full"));
      return;
    }
    EXPECT_STATUS(CPNSA_ERROR_COMMUNICATION, step.create(), HasSubstr("the disk is full"));
  });
  std::atomic<bool> waited = false;
  on_ranks(2, [&](int rank, Step& step) {
    if (rank == 1) {
      while (!waited) std::this_thread::yield();
      return;
    }
    check_c(cpnsa_communicator_set_deadline(step.communicator, 50));
    EXPECT_STATUS(CPNSA_ERROR_DEADLINE, step.create(), HasSubstr("rank 1"));
    waited = true;
  });
}

// Rank 0 waits in a barrier that rank 1 does not enter before rank 0's other thread was refused.
TEST(CRanks, OneThreadAtATime) {
  std::atomic<bool> refused = false;
  on_ranks(2, [&](int rank, Step& step) {
    if (rank == 1) {
      while (!refused) std::this_thread::yield();
      check_c(cpnsa_communicator_barrier(step.communicator));
      return;
    }
    std::thread other([&] {
      for (;;) {
        const cpnsa_status status = cpnsa_communicator_set_deadline(step.communicator, 20'000);
        if (status == CPNSA_SUCCESS) continue;
        EXPECT_STATUS(CPNSA_ERROR_ARGUMENT, status, HasSubstr("one at a time"));
        refused = true;
        return;
      }
    });
    while (!refused && cpnsa_communicator_barrier(step.communicator) != CPNSA_SUCCESS) {
    }
    other.join();
  });
}

}  // namespace
}  // namespace cpnsa::test
