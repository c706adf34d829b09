#include "cpnsa/error.hpp"
#include "tools/backends/backends.hpp"

namespace cpnsa::tool::backends {

bool has_nccl() {
  return false;
}

std::unique_ptr<Communicator> make_nccl_communicator(Communicator&, Device&) {
  throw UnsupportedError(
      "--transport: found nccl, expected threads or mpi: this build has no NCCL (cmake --preset cuda)");
}

}  // namespace cpnsa::tool::backends
