#include "ranks/ranks.hpp"

#include <cstdlib>

#include "cpnsa/threads/communicator.hpp"

namespace language_model {
namespace {

class ThreadRanks final : public Ranks {
 public:
  explicit ThreadRanks(int ranks) : ranks_(ranks) {}
  void run(const std::function<void(cpnsa::Communicator&)>& body) override { cpnsa::threads::run_ranks(ranks_, body); }

 private:
  int ranks_;
};

}  // namespace

std::optional<Launch> launch_of_environment() {
  struct Variables {
    const char* rank;
    const char* size;
  };
  // Open MPI; MPICH and its relatives; srun with PMIx.
  for (const auto& [rank, size] : {Variables{"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"},
                                   Variables{"PMI_RANK", "PMI_SIZE"}, Variables{"PMIX_RANK", "SLURM_NTASKS"}}) {
    const char* rank_value = std::getenv(rank);
    const char* size_value = std::getenv(size);
    if (rank_value && size_value) return Launch{std::atoi(rank_value), std::atoi(size_value)};
  }
  return std::nullopt;
}

std::unique_ptr<Ranks> make_thread_ranks(int ranks) {
  return std::make_unique<ThreadRanks>(ranks);
}

}  // namespace language_model
