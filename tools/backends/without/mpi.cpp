#include "cpnsa/error.hpp"
#include "tools/backends/backends.hpp"

namespace cpnsa::tool::backends {

bool has_mpi() {
  return false;
}

std::unique_ptr<MpiJob> make_mpi_job() {
  throw UnsupportedError("--transport: found mpi, expected threads: this build has no MPI (CPNSA_MPI is OFF)");
}

}  // namespace cpnsa::tool::backends
