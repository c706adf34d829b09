// threads::run_ranks rethrows one exception: the cause, not its consequences.

#include <gmock/gmock.h>
#include <stdlib.h>

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

TEST(Threads, ACommunicatorThatIsDestroyedReleasesTheOthers) {
  std::vector<std::unique_ptr<Communicator>> all = threads::make_communicators(3);
  std::vector<std::string> texts(2);
  {
    std::vector<std::jthread> waiting;
    for (std::size_t rank : {0u, 1u})
      waiting.emplace_back([&, rank] { texts[rank] = text_thrown<CommunicationError>([&] { all[rank]->barrier(); }); });
    all.back().reset();
  }
  for (const std::string& text : texts)
    EXPECT_THAT(text, ::testing::HasSubstr("waited for rank 2, whose communicator is destroyed"));
}

TEST(Deadline, TheEnvironmentAndTheProcessSayTheInitialOne) {
  const auto with = [](const char* value) {
    ::setenv("CPNSA_DEADLINE", value, 1);
    return text_thrown<ArgumentError>([] { static_cast<void>(initial_deadline()); });
  };
  ::unsetenv("CPNSA_DEADLINE");
  EXPECT_EQ(initial_deadline(), Communicator::default_deadline);
  EXPECT_EQ(with("7"), "");
  EXPECT_EQ(initial_deadline(), std::chrono::seconds(7));
  for (const char* wrong : {"", " 7", "7s", "0", "-3", "1000001"})
    EXPECT_THAT(with(wrong), ::testing::HasSubstr("CPNSA_DEADLINE: found \"" + std::string(wrong) + '"'));
  set_default_deadline(std::chrono::seconds(9));
  EXPECT_EQ(initial_deadline(), std::chrono::seconds(9));
  ::unsetenv("CPNSA_DEADLINE");
}

}  // namespace
}  // namespace cpnsa::test
