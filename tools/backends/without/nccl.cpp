#include "cpnsa/error.hpp"
#include "tools/backends/backends.hpp"

namespace cpnsa::tool::backends {

bool has_nccl() {
  return false;
}

std::unique_ptr<NcclJob> make_nccl_job(Communicator&, Device&) {
  throw UnsupportedError(
      "--transport: found nccl, expected threads or mpi: this build has no NCCL (cmake --preset cuda)");
}

}  // namespace cpnsa::tool::backends
