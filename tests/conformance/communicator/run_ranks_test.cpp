// threads::run_ranks rethrows one exception: the cause, not its consequences.

#include <gmock/gmock.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>

#include "cpnsa/error.hpp"
#include "cpnsa/threads/communicator.hpp"
#include "tests/conformance/communicator/transports.hpp"

namespace cpnsa::test {
namespace {

TEST(RunRanks, RunsEveryRankOnce) {
  std::atomic<int> sum = 0;
  threads::run_ranks(8, [&](Communicator& communicator) { sum += 1 << communicator.rank(); });
  EXPECT_EQ(sum, 255);
}

TEST(RunRanks, ThrowingRankReleasesTheOthersAndItsExceptionComesBack) {
  for (const int ranks : {1, 2, 3, 8}) {
    std::atomic<int> released = 0;
    const std::string text = text_thrown<std::out_of_range>([&] {
      threads::run_ranks(ranks, [&](Communicator& communicator) {
        if (communicator.rank() == ranks / 2) throw std::out_of_range("row 7 of 5");
        try {
          communicator.barrier();
        } catch (const CommunicationError& error) {
          EXPECT_THAT(error.what(), ::testing::HasSubstr("row 7 of 5"));
          ++released;
          throw;
        }
      });
    });
    EXPECT_EQ(text, "row 7 of 5");
    EXPECT_EQ(released, ranks - 1);
  }
}

TEST(RunRanks, RankThatAbortsBeforeItThrowsIsStillTheCause) {
  const std::string text = text_thrown<std::out_of_range>([&] {
    threads::run_ranks(4, [&](Communicator& communicator) {
      if (communicator.rank() != 2) return communicator.barrier();
      communicator.abort("row 7 of 5");
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      throw std::out_of_range("row 7 of 5");
    });
  });
  EXPECT_EQ(text, "row 7 of 5");
}

TEST(RunRanks, ExceptionsOfAnyTypeComeBack) {
  EXPECT_THROW(threads::run_ranks(3,
                                  [](Communicator& communicator) {
                                    if (communicator.rank() == 1) throw 42;
                                    communicator.barrier();
                                  }),
               int);
}

TEST(RunRanks, NeedsARank) {
  EXPECT_THROW(threads::run_ranks(0, [](Communicator&) {}), ArgumentError);
  EXPECT_THROW(threads::make_communicators(-1), ArgumentError);
}

}  // namespace
}  // namespace cpnsa::test
