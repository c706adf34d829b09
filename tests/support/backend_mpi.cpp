#include "tests/support/backend_mpi.hpp"

#include <exception>
#include <stdexcept>

#include "cpnsa/mpi/communicator.hpp"

namespace cpnsa::test {
namespace {

int world_size() {
  int size = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  return size;
}

const bool registered = add(transports(), mpi_backend("mpi", [] { return mpi::make_communicator(MPI_COMM_WORLD); }));

}  // namespace

TransportBackend mpi_backend(std::string name, std::function<std::unique_ptr<Communicator>()> make) {
  const auto run = [make = std::move(make)](int ranks, const std::function<void(Communicator&)>& body) {
    if (ranks != world_size()) throw std::logic_error("MPI runs as many ranks as processes were started");
    const std::unique_ptr<Communicator> communicator = make();
    try {
      body(*communicator);
    } catch (const std::exception& error) {
      communicator->abort(error.what());
      throw;
    }
  };
  return {std::move(name), [] { return std::vector<int>{world_size()}; }, run};
}

}  // namespace cpnsa::test
