#include <fmt/format.h>

#include <cstdio>
#include <exception>
#include <memory>
#include <new>

#include "backends/backends.hpp"
#include "cpnsa/error.hpp"
#include "options.hpp"
#include "tools/ranks.hpp"
#include "train_and_ask.hpp"

namespace {

using namespace needle;

void run_job(const CommandLine& line, const cpnsa::tool::Launch& launch,
             std::unique_ptr<cpnsa::tool::RankGroup>& ranks) {
  if (launch.size > 1 && !cpnsa::backends::has_mpi)
    throw cpnsa::UnsupportedError(
        fmt::format("found a job of {} processes, expected one: this build has no MPI (CPNSA_MPI is OFF); --ranks runs "
                    "ranks as threads",
                    launch.size));
  const cpnsa::tool::ExecutionOptions& execution = line.options.execution;
  const int threads = line.problem.empty() ? execution.ranks.value_or(1) : 1;
  ranks = cpnsa::tool::make_rank_group(launch, execution.transport, threads);
  ranks->run([&](const cpnsa::tool::RankPlace& place) {
    cpnsa::agree(place.control, "needle_in_a_haystack", line.problem);
    needle::train_and_ask(line.options, place);
  });
}

}  // namespace

int main(int argc, char** argv) {
  const cpnsa::tool::Launch launch = cpnsa::tool::launch_of_environment();
  const bool prints = launch.rank == 0;  // one line per job, not one per process
  const CommandLine line = parse_command_line(argc, argv);
  if (!line.help.empty()) {
    if (prints) fmt::print("{}", line.help);
    return 0;
  }

  std::unique_ptr<cpnsa::tool::RankGroup> ranks;
  std::string problem;
  try {
    run_job(line, launch, ranks);
  } catch (const std::bad_alloc&) {
    problem = "found no memory left, expected enough for the model; try fewer --tokens or a smaller --longest";
  } catch (const std::exception& error) {
    problem = error.what();
  }
  // Printed before MPI is finalised: a launcher may end the job as soon as one process has.
  if (!problem.empty() && prints) fmt::print(stderr, "needle_in_a_haystack: error: {}\n", problem);
  std::fflush(stdout);
  ranks.reset();
  return problem.empty() ? 0 : 1;
}
