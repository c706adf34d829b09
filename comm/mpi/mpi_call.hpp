#pragma once

#include <mpi.h>

namespace cpnsa::mpi {

/// Throws CommunicationError with MPI's own text unless the call succeeded.
void check(int status, const char* call);

}  // namespace cpnsa::mpi
