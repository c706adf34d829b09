#include <gtest/gtest.h>

#include <exception>
#include <memory>
#include <stdexcept>

#include "cpnsa/cuda/device.hpp"
#include "cpnsa/nccl/communicator.hpp"
#include "tests/support/backends.hpp"
#include "tests/support/nccl_job.hpp"

namespace cpnsa::test {
namespace {

/// A kind of communicator. Making one takes NCCL half a second, so it is cached for later runs.
class Connection {
 public:
  virtual ~Connection() = default;
  virtual Communicator& communicator() = 0;
  /// Destroys a communicator that has failed or that waits for ranks that never come.
  virtual void abort() { communicator().abort("a test is over"); }
};

std::unique_ptr<Communicator> by_id() {
  return nccl::make_communicator(NcclJob::next_id(), NcclJob::size(), NcclJob::rank());
}

class ById final : public Connection {
 public:
  Communicator& communicator() override { return *communicator_; }

 private:
  std::unique_ptr<Communicator> communicator_ = by_id();
};

// Another NCCL communicator serves as the control communicator.
class OverControl final : public Connection {
 public:
  Communicator& communicator() override { return *communicator_; }

 private:
  std::unique_ptr<Device> device_ = cuda::make_device();
  std::unique_ptr<Communicator> control_ = by_id();
  std::unique_ptr<Communicator> communicator_ = nccl::make_communicator(*control_, *device_);
};

class Borrowed final : public Connection {
 public:
  Borrowed() {
    if (ncclCommInitRank(&handle_, NcclJob::size(), NcclJob::next_id(), NcclJob::rank()) != ncclSuccess)
      throw std::runtime_error("ncclCommInitRank failed");
    communicator_ = nccl::make_communicator(handle_);
  }
  ~Borrowed() override {
    communicator_.reset();
    if (!handle_) return;
    int size = 0;  // the caller's communicator must still work
    EXPECT_EQ(ncclCommCount(handle_, &size), ncclSuccess);
    EXPECT_EQ(size, NcclJob::size());
    EXPECT_EQ(ncclCommDestroy(handle_), ncclSuccess);
  }
  Communicator& communicator() override { return *communicator_; }
  void abort() override {
    Connection::abort();
    ncclCommAbort(handle_);
    handle_ = nullptr;
  }

 private:
  ncclComm_t handle_ = nullptr;
  std::unique_ptr<Communicator> communicator_;
};

/// Holds the communicator of one kind: made by the first run, and made again after a run that failed on any rank.
template <class Kind>
class Cached : public testing::Environment {
 public:
  void run(const std::function<void(Communicator&)>& body) {
    if (!connection_) connection_ = std::make_unique<Kind>();
    connection_->communicator().set_deadline(Communicator::default_deadline);
    bool good = true;
    std::exception_ptr thrown;
    try {
      body(connection_->communicator());
      connection_->communicator().check();
    } catch (const std::exception&) {
      good = false;
      thrown = std::current_exception();
      connection_->abort();
    }
    if (!NcclJob::all(good)) {
      if (good) connection_->abort();
      connection_.reset();
    }
    if (thrown) std::rethrow_exception(thrown);
  }
  void TearDown() override { connection_.reset(); }

 private:
  std::unique_ptr<Connection> connection_;
};

template <class Kind>
TransportBackend backend(std::string name) {
  auto* const cached = new Cached<Kind>;
  testing::AddGlobalTestEnvironment(cached);  // takes ownership
  return {std::move(name), [] { return std::vector<int>{NcclJob::size()}; },
          [cached](int, const std::function<void(Communicator&)>& body) { cached->run(body); }, false};
}

const bool registered = add(transports(), backend<ById>("nccl")) &&
                        add(transports(), backend<OverControl>("nccl_over_control")) &&
                        add(transports(), backend<Borrowed>("nccl_borrowed"));

}  // namespace
}  // namespace cpnsa::test
