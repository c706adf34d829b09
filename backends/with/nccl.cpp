#include <nccl.h>

#include <cstring>
#include <string>

#include "backends/backends.hpp"
#include "cpnsa/error.hpp"
#include "cpnsa/nccl/communicator.hpp"
#include "cpnsa/nccl/info.hpp"

namespace cpnsa::backends {

static_assert(sizeof(ncclUniqueId) == nccl_id_bytes);

std::unique_ptr<Communicator> make_nccl_communicator(Communicator& control, Device& device,
                                                     std::chrono::milliseconds deadline) {
  return nccl::make_communicator(control, device, {.deadline = deadline});
}

std::unique_ptr<Communicator> make_nccl_communicator(const void* id, int rank, int ranks) {
  ncclUniqueId given;
  std::memcpy(&given, id, sizeof given);
  return nccl::make_communicator(given, ranks, rank);
}

std::unique_ptr<Communicator> borrow_nccl_communicator(void* handle) {
  return nccl::make_communicator(static_cast<ncclComm_t>(handle));
}

void make_nccl_id(void* id) {
  ncclUniqueId made;
  if (const ncclResult_t status = ncclGetUniqueId(&made); status != ncclSuccess)
    throw CommunicationError(std::string("ncclGetUniqueId: found \"") + ncclGetErrorString(status) +
                             "\", expected success");
  std::memcpy(id, &made, sizeof made);
}

std::vector<LibraryVersion> nccl_versions() {
  return {nccl::library_version()};
}

}  // namespace cpnsa::backends
