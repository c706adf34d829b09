#include "cpnsa/error.hpp"
#include "ranks/ranks.hpp"

namespace language_model {

std::unique_ptr<Ranks> make_process_ranks() {
  throw cpnsa::UnsupportedError(
      "found processes of mpirun, expected one process: this build has no MPI (CPNSA_MPI is OFF); --ranks runs ranks "
      "as threads");
}

}  // namespace language_model
