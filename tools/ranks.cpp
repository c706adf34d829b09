#include "tools/ranks.hpp"

#include <fmt/format.h>

#include <cerrno>
#include <charconv>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string_view>
#include <thread>

#include "backends/backends.hpp"
#include "cpnsa/error.hpp"
#include "cpnsa/threads/communicator.hpp"

namespace cpnsa::tool {
namespace {

struct Number {
  std::string variable;
  int value;
};

// The first of the variables that holds a whole number.
template <std::size_t count>
std::optional<Number> number_of(const char* const (&variables)[count]) {
  for (const char* variable : variables) {
    const char* value = std::getenv(variable);
    if (!value) continue;
    const std::string_view text(value);
    int number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error == std::errc() && end == text.data() + text.size() && number >= 0) return Number{variable, number};
  }
  return std::nullopt;
}

/// Ends the process if it still exists after the deadline: MPI_Init() waits for every process of the job, has no
/// deadline itself, and cannot be left in another way.
class StartLimit {
 public:
  explicit StartLimit(std::chrono::milliseconds deadline)
      : thread_([this, deadline] {
          std::unique_lock lock(mutex_);
          if (over_.wait_for(lock, deadline, [this] { return started_; })) return;
          fmt::print(stderr,
                     "{}: error: MPI_Init: waited {} ms for the job's processes, expected all of them to start\n",
                     program_invocation_short_name, deadline.count());
          std::_Exit(1);
        }) {}
  ~StartLimit() {
    {
      const std::lock_guard lock(mutex_);
      started_ = true;
    }
    over_.notify_one();
    thread_.join();
  }

 private:
  std::mutex mutex_;
  std::condition_variable over_;
  bool started_ = false;
  std::thread thread_;  // last: it uses the others
};

class MpiRanks final : public RankGroup {
 public:
  explicit MpiRanks(std::chrono::milliseconds deadline) {
    const StartLimit limit(deadline);
    job_ = backends::make_mpi_job(deadline);
  }
  const Communicator& communicator() const { return job_->communicator(); }
  void run(const std::function<void(const RankPlace&)>& body) override {
    body({job_->communicator(), job_->local_rank(), job_->local_size()});
  }

 private:
  std::unique_ptr<backends::MpiJob> job_;
};

class ThreadRanks final : public RankGroup {
 public:
  ThreadRanks(int ranks, std::chrono::milliseconds deadline) : ranks_(ranks), deadline_(deadline) {}
  void run(const std::function<void(const RankPlace&)>& body) override {
    threads::run_ranks(ranks_, [&](Communicator& communicator) {
      communicator.set_deadline(deadline_);
      body({communicator, communicator.rank(), ranks_});
    });
  }

 private:
  int ranks_;
  std::chrono::milliseconds deadline_;
};

}  // namespace

Launch launch_of_environment() {
  // Open MPI; MPICH, Intel MPI and others with Hydra; PMIx (srun --mpi=pmix, whose size stands in Slurm's variable).
  const std::optional<Number> rank = number_of({"OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"});
  if (!rank) return {};
  const std::optional<Number> size = number_of({"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS"});
  return {rank->variable, true, rank->value, size ? size->value : 1};
}

std::unique_ptr<RankGroup> make_rank_group(Launch& launch, const ExecutionOptions& options, int threads) {
  if (launch.size > 1 && !backends::has_mpi)
    throw UnsupportedError(
        fmt::format("found a job of {} processes, expected one: this build has no MPI (CPNSA_MPI is OFF); --ranks runs "
                    "ranks as threads",
                    launch.size));
  const std::chrono::milliseconds deadline = options.deadline_or_default();
  const bool by_mpi = options.transport == TransportKind::mpi || (launch.by_launcher && backends::has_mpi);
  if (!by_mpi) return std::make_unique<ThreadRanks>(threads, deadline);
  if (!backends::has_mpi)
    throw UnsupportedError("--transport: found mpi, expected threads: this build has no MPI (CPNSA_MPI is OFF)");
  auto ranks = std::make_unique<MpiRanks>(deadline);
  const Launch said = launch;
  launch.rank = ranks->communicator().rank();
  launch.size = ranks->communicator().size();
  // Every process would be a job of its own, and each would do the whole work.
  if (said.by_launcher && said.rank != launch.rank)
    throw ArgumentError(fmt::format(
        "{}: found {}, expected {}, as MPI says: start the processes with the launcher of this MPI (mpirun, srun), or "
        "unset the variable",
        said.variable, said.rank, launch.rank));
  return ranks;
}

}  // namespace cpnsa::tool
