#include "backends/backends.hpp"
#include "backends/without/refuse.hpp"

namespace cpnsa::backends {

std::unique_ptr<MpiJob> make_mpi_job() {
  refuse("MPI", "CPNSA_MPI");
}

}  // namespace cpnsa::backends
