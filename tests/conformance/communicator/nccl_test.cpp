// Failures of the NCCL communicator alone: ranks that do not come, noticed while the host waits for enqueued work.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "cpnsa/cpu/device.hpp"
#include "cpnsa/cuda/device.hpp"
#include "cpnsa/error.hpp"
#include "cpnsa/nccl/communicator.hpp"
#include "tests/conformance/communicator/transports.hpp"
#include "tests/support/device_buffer.hpp"
#include "tests/support/nccl_job.hpp"

namespace cpnsa::test {
namespace {

using std::chrono::milliseconds;
using ::testing::AllOf;
using ::testing::HasSubstr;

class NcclCommunicator : public ::testing::Test {
 protected:
  void SetUp() override {
    communicator_ = nccl::make_communicator(NcclJob::next_id(), NcclJob::size(), NcclJob::rank());
  }

  bool late() const { return NcclJob::rank() == NcclJob::size() - 1; }

  std::unique_ptr<Device> device_ = cuda::make_device();
  std::unique_ptr<Communicator> communicator_;
};

TEST_F(NcclCommunicator, BarrierHasADeadline) {
  if (NcclJob::size() == 1) GTEST_SKIP() << "one rank waits for none";
  communicator_->barrier();
  communicator_->set_deadline(milliseconds(500));
  if (late()) {
    std::this_thread::sleep_for(milliseconds(1500));
    // Messages that the others sent before they gave up may arrive, so this rank may notice only at the next call.
    const std::string first = text_thrown<CommunicationError>([&] { communicator_->barrier(); });
    EXPECT_NE(text_thrown<CommunicationError>([&] { communicator_->barrier(); }), "") << first;
    return;
  }
  EXPECT_THAT(text_thrown<DeadlineError>([&] { communicator_->barrier(); }),
              AllOf(HasSubstr("barrier"), HasSubstr("500 ms")));
  EXPECT_THAT(text_thrown<DeadlineError>([&] { communicator_->barrier(); }), HasSubstr("500 ms"));
}

TEST_F(NcclCommunicator, WaitForAMessageThatIsNeverSentHasADeadline) {
  if (NcclJob::size() == 1) GTEST_SKIP() << "one rank waits for none";
  communicator_->barrier();
  communicator_->set_deadline(milliseconds(500));
  DeviceBuffer buffer(*device_, 1000);
  if (late()) {
    std::this_thread::sleep_for(milliseconds(1500));
    return;
  }
  const ReceiveMessage receive{NcclJob::size() - 1, buffer.data(), 1000};
  EXPECT_THAT(text_thrown<DeadlineError>([&] {
                communicator_->exchange({}, {&receive, 1}, *device_, Stream{});
                communicator_->wait(*device_, Stream{});
              }),
              HasSubstr("500 ms"));
}

TEST_F(NcclCommunicator, AbortEndsLaterCalls) {
  communicator_->abort("the disk is full");
  communicator_->abort("the tape is torn");
  const auto check_ended = [](const std::function<void()>& call) {
    EXPECT_THAT(text_thrown<CommunicationError>(call), HasSubstr("the disk is full"));
  };
  check_ended([&] { communicator_->barrier(); });
  check_ended([&] { communicator_->exchange({}, {}, *device_, Stream{}); });
  check_ended([&] { communicator_->wait(*device_, Stream{}); });
  check_ended([&] { communicator_->check(); });
}

TEST_F(NcclCommunicator, MovesOnlyTheMemoryOfItsDevice) {
  EXPECT_NO_THROW(communicator_->check_device(*device_));
  EXPECT_THAT(text_thrown<ArgumentError>([&] { communicator_->check_device(*cpu::make_device()); }),
              AllOf(HasSubstr("found cpu"), HasSubstr("expected cuda device")));
}

TEST_F(NcclCommunicator, RefusesRanksAndHandlesThatCannotBe) {
  EXPECT_THROW(nccl::make_communicator(ncclComm_t{}), ArgumentError);
  EXPECT_THROW(nccl::make_communicator(ncclUniqueId{}, 2, 2), ArgumentError);
  EXPECT_THROW(nccl::make_communicator(ncclUniqueId{}, 0, 0), ArgumentError);
}

}  // namespace
}  // namespace cpnsa::test
