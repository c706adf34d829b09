#include <fmt/format.h>

#include <cstdio>
#include <exception>
#include <new>

#include "cpnsa/error.hpp"
#include "options.hpp"
#include "ranks/ranks.hpp"
#include "train.hpp"

namespace {

using namespace language_model;

std::unique_ptr<Ranks> make_ranks(const CommandLine& line, const std::optional<Launch>& launch) {
  if (launch) return make_process_ranks();
  return make_thread_ranks(line.problem.empty() ? line.options.ranks.value_or(1) : 1);
}

std::string problem_of(const CommandLine& line, const cpnsa::Communicator& communicator) {
  if (!line.problem.empty()) return line.problem;
  if (line.options.ranks.value_or(communicator.size()) != communicator.size())
    return fmt::format("--ranks: found {}, expected {} or no flag: mpirun started {} processes", *line.options.ranks,
                       communicator.size(), communicator.size());
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  const std::optional<Launch> launch = launch_of_environment();
  const bool speaks = !launch || launch->rank == 0;  // one line a job, not one a process
  const CommandLine line = parse_command_line(argc, argv);
  if (!line.help.empty()) {
    if (speaks) fmt::print("{}", line.help);
    return 0;
  }

  std::unique_ptr<Ranks> ranks;
  std::string problem;
  try {
    ranks = make_ranks(line, launch);
    ranks->run([&](cpnsa::Communicator& communicator) {
      cpnsa::agree(communicator, "language_model", problem_of(line, communicator));
      train(line.options, communicator);
    });
  } catch (const std::bad_alloc&) {
    problem = "found no memory left, expected enough for the model; try fewer --tokens or a smaller --width";
  } catch (const std::exception& error) {
    problem = error.what();
  }
  // Said before MPI is finalised: a launcher may end the job as soon as one process has.
  if (!problem.empty() && speaks) fmt::print(stderr, "language_model: error: {}\n", problem);
  std::fflush(stdout);
  ranks.reset();
  return problem.empty() ? 0 : 1;
}
