#include <mpi.h>

#include "cpnsa/error.hpp"
#include "cpnsa/mpi/communicator.hpp"
#include "ranks/ranks.hpp"

namespace language_model {
namespace {

class ProcessRanks final : public Ranks {
 public:
  ProcessRanks() {
    int provided = 0;
    if (MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided) != MPI_SUCCESS)
      throw cpnsa::CommunicationError("MPI_Init_thread: found a failure, expected success");
    communicator_ = cpnsa::mpi::make_communicator(MPI_COMM_WORLD);
  }

  ~ProcessRanks() override {
    communicator_.reset();
    MPI_Finalize();
  }

  void run(const std::function<void(cpnsa::Communicator&)>& body) override {
    try {
      body(*communicator_);
    } catch (const cpnsa::Error&) {
      throw;  // what the library throws, it throws on every rank
    } catch (const std::exception& error) {
      communicator_->abort(error.what());
      throw;
    }
  }

 private:
  std::unique_ptr<cpnsa::Communicator> communicator_;
};

}  // namespace

std::unique_ptr<Ranks> make_process_ranks() {
  return std::make_unique<ProcessRanks>();
}

}  // namespace language_model
