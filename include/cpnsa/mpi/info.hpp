#pragma once

#include "cpnsa/info.hpp"

namespace cpnsa::mpi {

/// MPI, compiled and found; may be called before MPI is initialised.
LibraryVersion library_version();

}  // namespace cpnsa::mpi
