#include <mpi.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "backends/backends.hpp"
#include "cpnsa/error.hpp"
#include "cpnsa/mpi/communicator.hpp"
#include "cpnsa/mpi/info.hpp"

namespace cpnsa::backends {
namespace {

void check(int status, const char* call) {
  if (status == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(status, text, &length);
  throw CommunicationError(std::string(call) + ": found \"" + text + "\", expected success");
}

// Where a process runs: processes of equal places share the host's GPUs.
struct HostName {
  char text[MPI_MAX_PROCESSOR_NAME + 1] = "";
};

class Job final : public MpiJob {
 public:
  explicit Job(std::chrono::milliseconds deadline) {
    int provided = 0;
    check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided), "MPI_Init_thread");
    communicator_ = mpi::make_communicator(MPI_COMM_WORLD, {.deadline = deadline});
    find_local_ranks();
  }

  ~Job() override {
    communicator_.reset();
    MPI_Finalize();
  }

  Communicator& communicator() override { return *communicator_; }
  int local_rank() const override { return local_rank_; }
  int local_size() const override { return local_size_; }

 private:
  // By the library's communicator: MPI's own operations have no deadline.
  void find_local_ranks() {
    HostName own;
    int length = 0;
    check(MPI_Get_processor_name(own.text, &length), "MPI_Get_processor_name");
    std::vector<HostName> all(static_cast<std::size_t>(communicator_->size()));
    communicator_->all_gather_host(&own, all.data(), sizeof own);
    local_size_ = 0;
    for (int rank = 0; rank < communicator_->size(); ++rank) {
      if (std::strcmp(all[static_cast<std::size_t>(rank)].text, own.text) != 0) continue;
      if (rank == communicator_->rank()) local_rank_ = local_size_;
      ++local_size_;
    }
  }

  std::unique_ptr<Communicator> communicator_;
  int local_rank_ = 0;
  int local_size_ = 1;
};

}  // namespace

std::unique_ptr<MpiJob> make_mpi_job(std::chrono::milliseconds deadline) {
  return std::make_unique<Job>(deadline);
}

std::vector<LibraryVersion> mpi_versions() {
  return {mpi::library_version()};
}

void abort_mpi_job(int status) {
  int initialised = 0, finalised = 0;
  MPI_Initialized(&initialised);
  MPI_Finalized(&finalised);
  if (!initialised || finalised) return;
  // Where MPI itself is stuck, this process at least ends.
  std::signal(SIGALRM, SIG_DFL);
  ::alarm(5);
  MPI_Abort(MPI_COMM_WORLD, status);
  std::_Exit(status);
}

}  // namespace cpnsa::backends
