#pragma once

#include <functional>
#include <memory>
#include <string>

#include "tests/support/backends.hpp"

namespace cpnsa::test {

/// A transport whose ranks are the processes of MPI_COMM_WORLD; `make` is collective.
TransportBackend mpi_backend(std::string name, std::function<std::unique_ptr<Communicator>()> make);

}  // namespace cpnsa::test
