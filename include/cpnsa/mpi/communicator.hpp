#pragma once

#include <mpi.h>

#include <memory>

#include "cpnsa/communicator.hpp"

namespace cpnsa::mpi {

/// A communicator over a duplicate of `parent`, which stays the caller's. Collective over `parent`. MPI must be
/// initialised, with MPI_THREAD_SERIALIZED at least if several threads call the library. Memory that the host cannot
/// reach is moved through pinned host buffers. Throws CommunicationError when MPI reports an error.
std::unique_ptr<Communicator> make_communicator(MPI_Comm parent);

}  // namespace cpnsa::mpi
