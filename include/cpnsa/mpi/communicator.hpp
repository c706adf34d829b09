#pragma once

#include <mpi.h>

#include <chrono>
#include <memory>
#include <optional>

#include "cpnsa/communicator.hpp"

namespace cpnsa::mpi {

struct Options {
  std::optional<std::chrono::milliseconds> deadline{};  ///< of making it and of its waits; initial_deadline() if empty
};

/// A communicator over a duplicate of `parent`, which the caller keeps. Collective over `parent`. MPI must be
/// initialised, with MPI_THREAD_SERIALIZED at least if several threads call the library. Memory that the host cannot
/// access is moved through pinned host buffers. Throws CommunicationError when MPI reports an error, DeadlineError when
/// ranks do not come. A process of the same host that ends while others wait for it is noticed at once.
std::unique_ptr<Communicator> make_communicator(MPI_Comm parent, const Options& options = {});

}  // namespace cpnsa::mpi
