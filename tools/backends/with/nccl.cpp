#include "cpnsa/nccl/communicator.hpp"
#include "tools/backends/backends.hpp"

namespace cpnsa::tool::backends {

bool has_nccl() {
  return true;
}

std::unique_ptr<Communicator> make_nccl_communicator(Communicator& control, Device& device) {
  return nccl::make_communicator(control, device);
}

}  // namespace cpnsa::tool::backends
