// The errors on all ranks when one rank makes a mistake, gives up or does not come.

#include <gmock/gmock.h>

#include <chrono>
#include <thread>

#include "cpnsa/error.hpp"
#include "cpnsa/flight_recorder.hpp"
#include "cpnsa/interrupt.hpp"
#include "tests/conformance/communicator/transports.hpp"
#include "tests/support/device_buffer.hpp"

namespace cpnsa::test {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;

class Failures : public TransportTest {
 protected:
  void SetUp() override {
    if (!GetParam().tells_other_ranks) GTEST_SKIP() << "the transport does not compare calls";
  }
};
INSTANTIATE_TEST_SUITE_P(Communicator, Failures, ::testing::ValuesIn(transports()), name_of);

class Calls : public TransportTest {};
INSTANTIATE_TEST_SUITE_P(Communicator, Calls, ::testing::ValuesIn(transports()), name_of);

// Rank 0 sends `sent` bytes to rank 1, which expects `expected`. A rank whose own part succeeded gets the error in its
// next call.
void check_size_mismatch(Communicator& communicator, Device& device, std::size_t sent, std::size_t expected) {
  DeviceBuffer outgoing(device, sent), incoming(device, expected);
  const SendMessage send{1, outgoing.data(), sent};
  const ReceiveMessage receive{0, incoming.data(), expected};
  const bool sends = communicator.rank() == 0, receives = communicator.rank() == 1;
  const std::string text = text_thrown<MismatchError>([&] {
    communicator.exchange({&send, sends ? 1u : 0u}, {&receive, receives ? 1u : 0u}, device, Stream{});
    communicator.barrier();
  });
  EXPECT_THAT(text, AllOf(HasSubstr("exchange"), HasSubstr("rank 0"), HasSubstr("rank 1")))
      << "rank " << communicator.rank() << ", " << sent << " bytes sent, " << expected << " expected";
}

TEST_P(Failures, MessageLongerThanExpected) {
  run([](Communicator& communicator, Device& device) { check_size_mismatch(communicator, device, 101, 100); }, 2);
}

TEST_P(Failures, MessageShorterThanExpected) {
  run([](Communicator& communicator, Device& device) { check_size_mismatch(communicator, device, 100, 101); }, 2);
}

TEST_P(Failures, LongMessageLongerByWholeChunks) {
  run([](Communicator& communicator, Device& device) { check_size_mismatch(communicator, device, 9000, 6000); }, 2);
}

TEST_P(Failures, LongMessageShorterByWholeChunks) {
  run([](Communicator& communicator, Device& device) { check_size_mismatch(communicator, device, 300'000, 600'000); },
      2);
}

TEST_P(Failures, PartsOfDifferentSizes) {
  run(
      [](Communicator& communicator, Device& device) {
        std::vector<std::size_t> bytes(static_cast<std::size_t>(communicator.size()), 64);
        if (communicator.rank() == 1) bytes[1] = 65;
        DeviceBuffer own(device, 65), all(device, 65 * bytes.size());
        const std::string text = text_thrown<MismatchError>([&] {
          communicator.all_gather(own.data(), all.data(), bytes, device, Stream{});
          communicator.barrier();
        });
        EXPECT_THAT(text, HasSubstr("all_gather")) << "rank " << communicator.rank();
      },
      2);
}

TEST_P(Failures, DifferentCalls) {
  run(
      [](Communicator& communicator, Device&) {
        const int own = communicator.rank();
        std::vector<int> all(static_cast<std::size_t>(communicator.size()));
        const std::string text = text_thrown<MismatchError>([&] {
          if (own == 1) communicator.barrier();
          communicator.all_gather_host(&own, all.data(), sizeof own);
          communicator.barrier();
        });
        EXPECT_THAT(text, AllOf(HasSubstr("barrier"), HasSubstr("all_gather_host"))) << "rank " << own;
      },
      2);
}

void check_released(const std::function<void()>& call, int rank, int failing) {
  EXPECT_THAT(text_thrown<CommunicationError>(call),
              AllOf(HasSubstr("rank " + std::to_string(failing)), HasSubstr("the disk is full")))
      << "rank " << rank;
}

TEST_P(Failures, AbortReleasesRanksThatWaitAndEndsLaterCalls) {
  run(
      [](Communicator& communicator, Device& device) {
        const int rank = communicator.rank(), ranks = communicator.size(), failing = ranks - 1;
        communicator.set_deadline(std::chrono::hours(1));  // which would tell the same reason, but late
        DeviceBuffer outgoing(device, 400'000), incoming(device, 400'000);
        const SendMessage send{failing, outgoing.data(), 400'000};
        const ReceiveMessage receive{failing, incoming.data(), 400'000};
        if (rank == failing) {
          std::this_thread::sleep_for(std::chrono::milliseconds(20));
          communicator.abort("the disk is full");
        } else if (rank % 2 == 0) {
          check_released([&] { communicator.exchange({&send, 1}, {&receive, 1}, device, Stream{}); }, rank, failing);
        } else {
          check_released([&] { communicator.barrier(); }, rank, failing);
        }
        int own = rank;
        std::vector<int> all(static_cast<std::size_t>(ranks));
        check_released([&] { communicator.barrier(); }, rank, failing);
        check_released([&] { communicator.all_gather_host(&own, all.data(), sizeof own); }, rank, failing);
        check_released([&] { communicator.exchange({}, {}, device, Stream{}); }, rank, failing);
      },
      2);
}

TEST_P(Failures, OnlyTheFirstAbortCounts) {
  run(
      [](Communicator& communicator, Device&) {
        if (communicator.rank() == 0) {
          // The others may still be in make_communicator(), which the abort would end too.
          std::this_thread::sleep_for(std::chrono::milliseconds(200));
          communicator.abort("the disk is full");
          communicator.abort("the tape is torn");
        }
        check_released([&] { communicator.barrier(); }, communicator.rank(), 0);
      },
      2);
}

TEST_P(Failures, DeadlineNamesTheOperationAndTheRankThatDidNotCome) {
  run(
      [](Communicator& communicator, Device&) {
        const int late = communicator.size() - 1;
        communicator.barrier();
        communicator.set_deadline(std::chrono::milliseconds(150));
        if (communicator.rank() == late) {
          std::this_thread::sleep_for(std::chrono::milliseconds(1500));
          EXPECT_NE(text_thrown<CommunicationError>([&] { communicator.barrier(); }), "");
        } else {
          EXPECT_THAT(text_thrown<DeadlineError>([&] { communicator.barrier(); }),
                      AllOf(HasSubstr("barrier"), HasSubstr("150 ms"), HasSubstr("rank " + std::to_string(late))));
        }
      },
      2);
}

// Rank 1 does not come to an exchange with rank 0, for which rank 2 waits at the barrier after it.
TEST_P(Failures, DeadlineNamesTheRankAtFaultNotItsNeighbours) {
  run(
      [](Communicator& communicator, Device& device) {
        if (communicator.name() == "nccl") return;  // exchanges are enqueued
        if (communicator.size() > 4) return;
        const int rank = communicator.rank();
        communicator.barrier();
        communicator.set_deadline(std::chrono::milliseconds(300));
        DeviceBuffer outgoing(device, 8), incoming(device, 8);
        const SendMessage send{1, outgoing.data(), 8};
        const ReceiveMessage receive{1, incoming.data(), 8};
        if (rank == 1) {
          std::this_thread::sleep_for(std::chrono::milliseconds(1500));
          EXPECT_NE(text_thrown<CommunicationError>([&] { communicator.barrier(); }), "");
          return;
        }
        // Rank 0's deadline ends first, so that its error reaches the ranks that wait for it before theirs does.
        if (rank > 1) std::this_thread::sleep_for(std::chrono::milliseconds(200));
        const std::size_t messages = rank == 0 ? 1 : 0;
        const std::string text = text_thrown<DeadlineError>([&] {
          communicator.exchange({&send, messages}, {&receive, messages}, device, Stream{});
          communicator.barrier();
        });
        EXPECT_THAT(text, HasSubstr("waited 300 ms for rank 1 [")) << "rank " << rank;
      },
      3);
}

TEST_P(Failures, AnErrorNamesTheOperationAndItsNumber) {
  run(
      [](Communicator& communicator, Device&) {
        communicator.barrier();
        const FlightRecorder::Call call(communicator.recorder(), "forward", 3, 17);
        communicator.recorder().set_purpose("halo");
        const auto fail = [&] {
          communicator.barrier();
          if (communicator.rank() == 1) communicator.abort("the disk is full");
          communicator.barrier();
        };
        EXPECT_THAT(text_thrown<CommunicationError>(fail),
                    HasSubstr("rank 1 gave up: the disk is full [after forward of layer 3, call 17, operation 1: "
                              "barrier of halo]"))
            << "rank " << communicator.rank();
      },
      2);
}

TEST_P(Failures, InterruptEndsAWaitAndReleasesTheOthers) {
  run(
      [](Communicator& communicator, Device&) {
        const std::string text = text_thrown<CommunicationError>([&] {
          communicator.barrier();
          if (communicator.rank() == 0) interrupt();
          communicator.barrier();
        });
        EXPECT_THAT(text, HasSubstr("interrupted")) << "rank " << communicator.rank();
        EXPECT_THROW(communicator.barrier(), CommunicationError);
        clear_interrupt();
      },
      2);
}

TEST_P(Calls, DeadlinesAreOneMillisecondAtLeastAndMayBeForEver) {
  run([](Communicator& communicator, Device&) {
    for (const int wrong : {0, -5})
      EXPECT_THAT(text_thrown<ArgumentError>([&] { communicator.set_deadline(std::chrono::milliseconds(wrong)); }),
                  HasSubstr("expected 1 ms at least"));
    communicator.set_deadline(std::chrono::milliseconds::max());
    if (communicator.rank() == 0) std::this_thread::sleep_for(std::chrono::milliseconds(50));
    communicator.barrier();
  });
}

// The other ranks' bytes are no agreement where a transport does not compare operations.
TEST_P(Calls, AgreementFindsAnotherOperation) {
  run(
      [](Communicator& communicator, Device&) {
        const std::vector<char> own(agreement_bytes, 'x');
        std::vector<char> all(own.size() * static_cast<std::size_t>(communicator.size()));
        if (communicator.rank() == 1) return communicator.all_gather_host(own.data(), all.data(), own.size());
        EXPECT_THAT(text_thrown<MismatchError>([&] { agree(communicator, "forward"); }),
                    HasSubstr("rank 1: found bytes of another operation, expected an agreement"));
      },
      2);
}

TEST_P(Calls, BadArgumentsAreToldBeforeAnythingIsSent) {
  run([](Communicator& communicator, Device& device) {
    const int rank = communicator.rank(), ranks = communicator.size();
    DeviceBuffer buffer(device, 100);
    const auto rejects = [&](const std::vector<int>& peers, std::size_t bytes) {
      std::vector<SendMessage> sends;
      std::vector<ReceiveMessage> receives;
      for (const int peer : peers) sends.push_back({peer, buffer.data(), bytes});
      for (const int peer : peers) receives.push_back({peer, buffer.data(), bytes});
      EXPECT_THROW(communicator.exchange(sends, {}, device, Stream{}), ArgumentError);
      EXPECT_THROW(communicator.exchange({}, receives, device, Stream{}), ArgumentError);
    };
    rejects({rank}, 4);
    rejects({ranks}, 4);
    rejects({-1}, 4);
    if (ranks > 1) rejects({(rank + 1) % ranks}, 0);
    if (ranks > 1) rejects({(rank + 1) % ranks, (rank + 1) % ranks}, 4);
    const std::vector<std::size_t> parts(static_cast<std::size_t>(ranks) + 1, 1);
    EXPECT_THROW(communicator.all_gather(buffer.data(), buffer.data(), parts, device, Stream{}), ArgumentError);
    check_exchange(communicator, device, random_sizes(7, ranks), 7);
  });
}

TEST_P(Calls, AgreeTellsEveryRankTheSame) {
  run(
      [](Communicator& communicator, Device&) {
        const int rank = communicator.rank();
        agree(communicator, "forward #1");
        EXPECT_THAT(text_thrown<ArgumentError>(
                        [&] { agree(communicator, "forward #2", rank == 1 ? "q: found 3 rows, expected 4" : ""); }),
                    AllOf(HasSubstr("rank 1"), HasSubstr("q: found 3 rows")));
        EXPECT_THAT(text_thrown<MismatchError>(
                        [&] { agree(communicator, rank == 1 ? "forward dtype=f32" : "forward dtype=f64"); }),
                    AllOf(HasSubstr("rank 1"), HasSubstr("dtype=f32")));
        agree(communicator, "forward #3");
      },
      2);
}

TEST_P(Calls, AgreeOnTellsEveryRankWhatOneFound) {
  run(
      [](Communicator& communicator, Device&) {
        const int rank = communicator.rank();
        int validated = 0;
        agree_on(communicator, "forward #1", [&] { ++validated; });
        EXPECT_EQ(validated, 1);

        const auto fails_on_1 = [&] {
          if (rank == 1) throw UnsupportedError("head_dim_qk: found 7, expected a multiple of 8");
        };
        if (rank == 1)  // as it was thrown
          EXPECT_EQ(text_thrown<UnsupportedError>([&] { agree_on(communicator, "forward #2", fails_on_1); }),
                    "head_dim_qk: found 7, expected a multiple of 8");
        else
          EXPECT_EQ(text_thrown<ArgumentError>([&] { agree_on(communicator, "forward #2", fails_on_1); }),
                    "rank 1: head_dim_qk: found 7, expected a multiple of 8 [agreement]");

        EXPECT_THAT(text_thrown<MismatchError>(
                        [&] { agree_on(communicator, rank == 1 ? "forward dtype=f32" : "forward dtype=f64", [] {}); }),
                    AllOf(HasSubstr("rank 1"), HasSubstr("dtype=f32")));
        agree_on(communicator, "forward #3", [] {});
      },
      2);
}

TEST_P(Calls, ARefusalTakesTheRanksPlaceInTheCall) {
  run([](Communicator& communicator, Device&) {
    const int last = communicator.size() - 1;
    if (communicator.rank() == last)
      refuse(communicator, "q: found no tensor");
    else
      EXPECT_EQ(text_thrown<ArgumentError>([&] { agree_on(communicator, "forward", [] {}); }),
                "rank " + std::to_string(last) + ": q: found no tensor [agreement]");
    agree(communicator, "next");
  });
}

}  // namespace
}  // namespace cpnsa::test
