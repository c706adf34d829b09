#include <exception>
#include <stdexcept>

#include "cpnsa/cuda/device.hpp"
#include "cpnsa/nccl/communicator.hpp"
#include "tests/support/backends.hpp"
#include "tests/support/nccl_job.hpp"

namespace cpnsa::test {
namespace {

std::unique_ptr<Communicator> by_id() {
  return nccl::make_communicator(NcclJob::next_id(), NcclJob::size(), NcclJob::rank());
}

using Body = std::function<void(Communicator&)>;

void run(Communicator& communicator, const Body& body) {
  try {
    body(communicator);
  } catch (const std::exception& error) {
    communicator.abort(error.what());
    throw;
  }
}

void run_by_id(int, const Body& body) {
  run(*by_id(), body);
}

// Another NCCL communicator stands for what carries the id and the host's calls.
void run_over_control(int, const Body& body) {
  const std::unique_ptr<Device> device = cuda::make_device();
  const std::unique_ptr<Communicator> control = by_id();
  run(*nccl::make_communicator(*control, *device), body);
}

void run_borrowed(int, const Body& body) {
  ncclComm_t handle = nullptr;
  if (ncclCommInitRank(&handle, NcclJob::size(), NcclJob::next_id(), NcclJob::rank()) != ncclSuccess)
    throw std::runtime_error("ncclCommInitRank failed");
  run(*nccl::make_communicator(handle), body);
  int size = 0;  // it still works
  if (ncclCommCount(handle, &size) != ncclSuccess || size != NcclJob::size() || ncclCommDestroy(handle) != ncclSuccess)
    throw std::runtime_error("the borrowed communicator was touched");
}

TransportBackend backend(std::string name, std::function<void(int, const Body&)> run_ranks) {
  return {std::move(name), [] { return std::vector<int>{NcclJob::size()}; }, std::move(run_ranks), false};
}

const bool registered = add(transports(), backend("nccl", run_by_id)) &&
                        add(transports(), backend("nccl_over_control", run_over_control)) &&
                        add(transports(), backend("nccl_borrowed", run_borrowed));

}  // namespace
}  // namespace cpnsa::test
