#include <fmt/format.h>

#include <cstdio>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <utility>

#include "cpnsa/communicator.hpp"
#include "options.hpp"
#include "tools/ending.hpp"
#include "tools/ranks.hpp"
#include "train.hpp"

namespace {

using namespace language_model;

void run_job(const CommandLine& line, cpnsa::tool::Launch& launch, std::unique_ptr<cpnsa::tool::RankGroup>& ranks) {
  const cpnsa::tool::ExecutionOptions& execution = line.options.execution;
  const int threads = line.problem.empty() ? execution.ranks.value_or(1) : 1;
  ranks = cpnsa::tool::make_rank_group(launch, execution, threads);
  ranks->run([&](const cpnsa::tool::RankPlace& place) {
    cpnsa::agree(place.control, "language_model", line.problem);
    train(line.options, place);
  });
}

}  // namespace

int main(int argc, char** argv) {
  cpnsa::tool::handle_signals();
  cpnsa::tool::Launch launch = cpnsa::tool::launch_of_environment();
  const CommandLine line = parse_command_line(argc, argv);
  if (!line.help.empty()) {
    if (launch.rank == 0) fmt::print("{}", line.help);  // once per job, not once per process
    return 0;
  }

  std::unique_ptr<cpnsa::tool::RankGroup> ranks;
  std::string problem;
  try {
    run_job(line, launch, ranks);
  } catch (const std::bad_alloc&) {
    problem = "found no memory left, expected enough for the model; try fewer --tokens or a smaller --width";
  } catch (const std::exception& error) {
    problem = error.what();
  }
  if (!problem.empty()) return cpnsa::tool::end_by_failure("language_model", problem, launch, std::move(ranks));
  std::fflush(stdout);
  return 0;
}
