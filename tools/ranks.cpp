#include "tools/ranks.hpp"

#include <charconv>
#include <cstdlib>
#include <string_view>

#include "backends/backends.hpp"
#include "cpnsa/error.hpp"
#include "cpnsa/threads/communicator.hpp"

namespace cpnsa::tool {
namespace {

// The first of the variables that holds a whole number.
template <std::size_t count>
std::optional<int> number_of(const char* const (&variables)[count]) {
  for (const char* variable : variables) {
    const char* value = std::getenv(variable);
    if (!value) continue;
    const std::string_view text(value);
    int number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error == std::errc() && end == text.data() + text.size() && number >= 0) return number;
  }
  return std::nullopt;
}

class MpiRanks final : public RankGroup {
 public:
  MpiRanks() : job_(backends::make_mpi_job()) {}
  void run(const std::function<void(const RankPlace&)>& body) override {
    body({job_->communicator(), job_->local_rank(), job_->local_size()});
  }

 private:
  std::unique_ptr<backends::MpiJob> job_;
};

class ThreadRanks final : public RankGroup {
 public:
  explicit ThreadRanks(int ranks) : ranks_(ranks) {}
  void run(const std::function<void(const RankPlace&)>& body) override {
    threads::run_ranks(ranks_, [&](Communicator& communicator) { body({communicator, communicator.rank(), ranks_}); });
  }

 private:
  int ranks_;
};

}  // namespace

Launch launch_of_environment() {
  // Open MPI; MPICH, Intel MPI and others with Hydra; PMIx (srun --mpi=pmix, whose size stands in Slurm's variable).
  const std::optional<int> rank = number_of({"OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"});
  if (!rank) return {};
  const std::optional<int> size = number_of({"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS"});
  return {true, *rank, size.value_or(1)};
}

std::unique_ptr<RankGroup> make_rank_group(const Launch& launch, TransportKind transport, int threads) {
  const bool by_mpi = transport == TransportKind::mpi || (launch.by_launcher && backends::has_mpi);
  if (by_mpi && !backends::has_mpi)
    throw UnsupportedError("--transport: found mpi, expected threads: this build has no MPI (CPNSA_MPI is OFF)");
  if (by_mpi) return std::make_unique<MpiRanks>();
  return std::make_unique<ThreadRanks>(threads);
}

}  // namespace cpnsa::tool
