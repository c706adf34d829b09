#include "backends/backends.hpp"
#include "backends/without/refuse.hpp"

namespace cpnsa::backends {

std::unique_ptr<Communicator> make_nccl_communicator(Communicator&, Device&, std::chrono::milliseconds) {
  refuse("NCCL", "CPNSA_NCCL");
}

std::unique_ptr<Communicator> make_nccl_communicator(const void*, int, int) {
  refuse("NCCL", "CPNSA_NCCL");
}

std::unique_ptr<Communicator> borrow_nccl_communicator(void*) {
  refuse("NCCL", "CPNSA_NCCL");
}

void make_nccl_id(void*) {
  refuse("NCCL", "CPNSA_NCCL");
}

std::vector<LibraryVersion> nccl_versions() {
  return {};
}

}  // namespace cpnsa::backends
