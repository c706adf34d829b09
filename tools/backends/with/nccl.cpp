#include <fmt/format.h>
#include <nccl.h>

#include <type_traits>
#include <vector>

#include "cpnsa/error.hpp"
#include "cpnsa/nccl/communicator.hpp"
#include "tools/backends/backends.hpp"
#include "tools/together.hpp"

namespace cpnsa::tool::backends {
namespace {

void check(ncclResult_t status, const char* call) {
  if (status != ncclSuccess)
    throw CommunicationError(fmt::format("{}: found \"{}\", expected success", call, ncclGetErrorString(status)));
}

class Job final : public NcclJob {
 public:
  Job(Communicator& control, Device& device) {
    ncclUniqueId own{};
    together(control, [&] {
      device.activate();
      if (control.rank() == 0) check(ncclGetUniqueId(&own), "ncclGetUniqueId");
      return std::string();
    });
    std::vector<ncclUniqueId> all(static_cast<std::size_t>(control.size()));
    control.all_gather_host(&own, all.data(), sizeof own);
    together(control, [&] {
      ncclComm_t handle = nullptr;
      check(ncclCommInitRank(&handle, control.size(), all.front(), control.rank()), "ncclCommInitRank");
      handle_.reset(handle);
      communicator_ = nccl::make_communicator(handle);
      return std::string();
    });
  }

  Communicator& communicator() override { return *communicator_; }

 private:
  struct Destroy {
    void operator()(ncclComm_t handle) const { ncclCommDestroy(handle); }
  };
  std::unique_ptr<std::remove_pointer_t<ncclComm_t>, Destroy> handle_;  // outlives what borrows it
  std::unique_ptr<Communicator> communicator_;
};

}  // namespace

bool has_nccl() {
  return true;
}

std::unique_ptr<NcclJob> make_nccl_job(Communicator& control, Device& device) {
  return std::make_unique<Job>(control, device);
}

}  // namespace cpnsa::tool::backends
