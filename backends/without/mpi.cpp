#include "backends/backends.hpp"
#include "backends/without/refuse.hpp"

namespace cpnsa::backends {

std::unique_ptr<MpiJob> make_mpi_job(std::chrono::milliseconds) {
  refuse("MPI", "CPNSA_MPI");
}

std::vector<LibraryVersion> mpi_versions() {
  return {};
}

void abort_mpi_job(int) {}

}  // namespace cpnsa::backends
