#include <nccl.h>

#include <cstring>

#include "c/backends/backends.hpp"
#include "cpnsa/cpnsa.h"
#include "cpnsa/error.hpp"
#include "cpnsa/nccl/communicator.hpp"

namespace cpnsa::c::backends {

static_assert(sizeof(ncclUniqueId) == CPNSA_NCCL_UNIQUE_ID_BYTES);

bool has_nccl() {
  return true;
}

std::unique_ptr<Communicator> borrow_nccl(void* handle) {
  return nccl::make_communicator(static_cast<ncclComm_t>(handle));
}

void make_nccl_id(void* id) {
  ncclUniqueId made;
  if (const ncclResult_t status = ncclGetUniqueId(&made); status != ncclSuccess)
    throw CommunicationError(std::string("ncclGetUniqueId: found \"") + ncclGetErrorString(status) +
                             "\", expected success");
  std::memcpy(id, &made, sizeof made);
}

std::unique_ptr<Communicator> make_nccl(const void* id, int rank, int ranks) {
  ncclUniqueId given;
  std::memcpy(&given, id, sizeof given);
  return nccl::make_communicator(given, ranks, rank);
}

}  // namespace cpnsa::c::backends
