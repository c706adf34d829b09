#include <mpi.h>

#include <string>

#include "backends/backends.hpp"
#include "cpnsa/error.hpp"
#include "cpnsa/mpi/communicator.hpp"

namespace cpnsa::backends {
namespace {

void check(int status, const char* call) {
  if (status == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(status, text, &length);
  throw CommunicationError(std::string(call) + ": found \"" + text + "\", expected success");
}

class Job final : public MpiJob {
 public:
  Job() {
    int provided = 0;
    check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided), "MPI_Init_thread");
    communicator_ = mpi::make_communicator(MPI_COMM_WORLD);
    MPI_Comm host = MPI_COMM_NULL;
    check(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host), "MPI_Comm_split_type");
    check(MPI_Comm_rank(host, &local_rank_), "MPI_Comm_rank");
    check(MPI_Comm_size(host, &local_size_), "MPI_Comm_size");
    check(MPI_Comm_free(&host), "MPI_Comm_free");
  }

  ~Job() override {
    communicator_.reset();
    MPI_Finalize();  // waits for every process, so none ends the job before rank 0 has said what was wrong
  }

  Communicator& communicator() override { return *communicator_; }
  int local_rank() const override { return local_rank_; }
  int local_size() const override { return local_size_; }

 private:
  std::unique_ptr<Communicator> communicator_;
  int local_rank_ = 0;
  int local_size_ = 1;
};

}  // namespace

std::unique_ptr<MpiJob> make_mpi_job() {
  return std::make_unique<Job>();
}

}  // namespace cpnsa::backends
