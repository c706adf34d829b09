#include <stdexcept>

#include "cpnsa/mpi/communicator.hpp"
#include "tests/support/backends.hpp"

namespace cpnsa::test {
namespace {

int world_size() {
  int size = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  return size;
}

void run(int ranks, const std::function<void(Communicator&)>& body) {
  if (ranks != world_size()) throw std::logic_error("MPI runs as many ranks as processes were started");
  body(*mpi::make_communicator(MPI_COMM_WORLD));
}

const bool registered = add(transports(), TransportBackend{"mpi", [] { return std::vector<int>{world_size()}; }, run});

}  // namespace
}  // namespace cpnsa::test
