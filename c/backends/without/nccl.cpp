#include "c/backends/backends.hpp"
#include "cpnsa/error.hpp"

namespace cpnsa::c::backends {
namespace {

[[noreturn]] void refuse() {
  throw UnsupportedError("found a library built without NCCL, expected one built with CPNSA_NCCL=ON");
}

}  // namespace

bool has_nccl() {
  return false;
}

std::unique_ptr<Communicator> borrow_nccl(void*) {
  refuse();
}

void make_nccl_id(void*) {
  refuse();
}

std::unique_ptr<Communicator> make_nccl(const void*, int, int) {
  refuse();
}

}  // namespace cpnsa::c::backends
