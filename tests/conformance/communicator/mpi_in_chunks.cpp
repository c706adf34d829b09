// The MPI transport with messages cut into chunks of a few kilobytes, as those of more than 1 GiB are.

#include "comm/mpi/communicator.hpp"
#include "tests/support/backend_mpi.hpp"

namespace cpnsa::test {
namespace {

const bool registered = add(transports(), mpi_backend("mpi_in_chunks", [] {
                              return std::make_unique<mpi::MpiCommunicator>(MPI_COMM_WORLD, mpi::Options{}, 3000);
                            }));

}  // namespace
}  // namespace cpnsa::test
