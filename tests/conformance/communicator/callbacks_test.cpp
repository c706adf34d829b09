// Tests of the callbacks communicator alone: callbacks that fail in various ways.

#include <gmock/gmock.h>

#include <stdexcept>

#include "cpnsa/callbacks/communicator.hpp"
#include "cpnsa/cpu/device.hpp"
#include "cpnsa/error.hpp"
#include "tests/conformance/communicator/transports.hpp"

namespace cpnsa::test {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Failing {
  std::vector<std::string> aborted;
  int calls = 0;

  /// The communicator of rank 1 of 3 whose callbacks all throw `thrown`.
  template <class Thrown>
  std::unique_ptr<Communicator> communicator(Thrown thrown) {
    return callbacks::make_communicator(1, 3,
                                        {.exchange = [this, thrown](auto, auto) { fail(thrown); },
                                         .all_gather = [this, thrown](auto, auto) { fail(thrown); },
                                         .abort = [this](std::string_view reason) { aborted.emplace_back(reason); }});
  }

 private:
  template <class Thrown>
  void fail(Thrown thrown) {
    ++calls;
    throw thrown;
  }
};

template <class Expected, class Thrown>
void check_failure(Thrown thrown, const std::string& text) {
  Failing failing;
  const auto communicator = failing.communicator(thrown);
  const auto device = cpu::make_device();
  int own = 1, all[3] = {};
  const auto gather = [&] { communicator->all_gather_host(&own, all, sizeof own); };
  const std::string told = text_thrown<Expected>(gather);
  EXPECT_THAT(told, AllOf(HasSubstr("all_gather_host"), HasSubstr("rank 1 of 3"), HasSubstr(text)));
  EXPECT_EQ(text_thrown<Expected>([&] { communicator->barrier(); }), told);
  EXPECT_EQ(text_thrown<Expected>([&] { communicator->exchange({}, {}, *device, Stream{}); }), told);
  EXPECT_EQ(text_thrown<Expected>([&] { communicator->check(); }), told);
  communicator->abort("the tape is torn");
  EXPECT_EQ(failing.calls, 1);
  EXPECT_THAT(failing.aborted, ElementsAre(told));
}

TEST(CallbackCommunicator, FailureOfACallbackEndsTheCommunicator) {
  check_failure<CommunicationError>(std::runtime_error("the disk is full"), "the disk is full");
  check_failure<CommunicationError>(42, "no std::exception");
  check_failure<MismatchError>(MismatchError("3 bytes, expected 4"), "3 bytes, expected 4");
  check_failure<DeadlineError>(DeadlineError("waited 5 ms"), "waited 5 ms");
}

TEST(CallbackCommunicator, OneRankCallsNothing) {
  const auto unexpected = [](auto...) { ADD_FAILURE() << "called"; };
  const auto communicator = callbacks::make_communicator(
      0, 1, {.exchange = unexpected, .all_gather = unexpected, .barrier = [&] { unexpected(); }});
  const auto device = cpu::make_device();
  int own = 7, all = 0;
  communicator->all_gather_host(&own, &all, sizeof own);
  EXPECT_EQ(all, 7);
  communicator->exchange({}, {}, *device, Stream{});
  communicator->barrier();
}

TEST(CallbackCommunicator, RefusesRanksThatCannotBeAndMissingCallbacks) {
  const auto nothing = [](auto...) {};
  const callbacks::Callbacks both{.exchange = nothing, .all_gather = nothing};
  for (const auto& [rank, size] : {std::pair(2, 2), {-1, 2}, {0, 0}})
    EXPECT_THROW(callbacks::make_communicator(rank, size, both), ArgumentError);
  EXPECT_THAT(text_thrown<ArgumentError>([&] {
                callbacks::make_communicator(0, 2, {nothing, nullptr});
              }),
              HasSubstr("no all_gather"));
  EXPECT_THAT(text_thrown<ArgumentError>([&] {
                callbacks::make_communicator(0, 2, {nullptr, nothing});
              }),
              HasSubstr("no exchange"));
}

}  // namespace
}  // namespace cpnsa::test
