#pragma once

#include <functional>
#include <memory>
#include <optional>

#include "cpnsa/communicator.hpp"

namespace language_model {

/// The ranks of the job: processes that mpirun started, of which this is one, or threads of this process.
class Ranks {
 public:
  virtual ~Ranks() = default;

  /// Runs `body` for each rank that lives in this process; rethrows what a rank threw.
  virtual void run(const std::function<void(cpnsa::Communicator&)>& body) = 0;
};

/// This process's place among those that a launcher started, from the environment; nothing without a launcher.
struct Launch {
  int rank;
  int size;
};
std::optional<Launch> launch_of_environment();

std::unique_ptr<Ranks> make_thread_ranks(int ranks);

/// Of two files of this name, mpi/processes.cpp is linked where MPI is built and threads/processes.cpp, which throws,
/// where it is not.
std::unique_ptr<Ranks> make_process_ranks();

}  // namespace language_model
