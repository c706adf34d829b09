#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "cpnsa/communicator.hpp"
#include "tools/options.hpp"

namespace cpnsa::tool {

/// How this process was started, as the launcher's environment variables tell.
struct Launch {
  std::string variable;      ///< that says this process's rank, e.g. "PMI_RANK"
  bool by_launcher = false;  ///< by mpirun, mpiexec or srun with an MPI plug-in
  int rank = 0;              ///< this process's, 0 without a launcher
  int size = 1;              ///< processes, 1 where the launcher does not say
};
Launch launch_of_environment();

/// A rank's place among the others.
struct RankPlace {
  Communicator& control;  ///< host-side agreement; also moves the tensors unless the transport is nccl
  int local_rank;         ///< among the ranks of this host
  int local_size;
};

/// The ranks of a job: MPI processes, of which this is one, or threads of this process.
class RankGroup {
 public:
  virtual ~RankGroup() = default;  ///< of MPI processes, waits for all of them
  /// Runs `body` for each rank that lives in this process; rethrows what a rank threw.
  virtual void run(const std::function<void(const RankPlace&)>& body) = 0;
};

/// MPI processes under a launcher or with --transport mpi, threads otherwise. `launch` becomes what MPI says it is;
/// throws ArgumentError where the launcher's variables say otherwise.
std::unique_ptr<RankGroup> make_rank_group(Launch& launch, const ExecutionOptions& options, int threads);

}  // namespace cpnsa::tool
