#include <fmt/format.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <exception>
#include <new>
#include <string>
#include <utility>

#include "backends/backends.hpp"
#include "cpnsa/error.hpp"
#include "tools/command_line.hpp"
#include "tools/ending.hpp"
#include "tools/ranks.hpp"

namespace cpnsa::tool {
namespace {

constexpr const char* output_was_lost =
    "standard output: found no room for what was printed, expected it to be written";

bool all_was_written() {
  return std::fflush(stdout) == 0 && std::ferror(stdout) == 0;
}

int run_rank(const Invocation& invocation, const RankPlace& place) {
  agree_on(place.control, "command=" + invocation.command, [&] {
    if (!invocation.problem.empty()) throw ArgumentError(invocation.problem);
  });
  if (invocation.help.empty()) return invocation.run_rank(place);
  if (place.control.rank() == 0) fmt::print("{}", invocation.help);
  return 0;
}

int run_job(const Invocation& invocation, Launch& launch) {
  const ExecutionOptions& options = invocation.execution;
  std::atomic<int> status = 0;
  std::unique_ptr<RankGroup> ranks;
  std::string problem;
  try {
    ranks = make_rank_group(launch, options, invocation.problem.empty() ? options.ranks.value_or(1) : 1);
    ranks->run([&](const RankPlace& place) { status = run_rank(invocation, place); });
  } catch (const std::bad_alloc&) {
    problem = "found no host memory left, expected enough for the rank's tensors";
  } catch (const std::exception& error) {
    problem = error.what();
  } catch (...) {
    problem = "found an exception that is no std::exception";
  }
  if (!all_was_written() && problem.empty()) problem = output_was_lost;
  if (!problem.empty()) return end_by_failure("cpnsa", problem, launch, std::move(ranks));
  return status;
}

}  // namespace
}  // namespace cpnsa::tool

int main(int argc, char** argv) {
  using namespace cpnsa::tool;
  // Writing past a size limit or to a closed pipe shall be an error that is reported, not a signal that kills.
  std::signal(SIGXFSZ, SIG_IGN);
  std::signal(SIGPIPE, SIG_IGN);

  handle_signals();

  Launch launch = launch_of_environment();
  const Invocation invocation = parse_command_line(argc, argv);
  // One of several processes agrees with the others on that too: those that have a layer to run would wait for it.
  if (!invocation.help.empty() && (launch.size == 1 || !cpnsa::backends::has_mpi)) {
    if (launch.rank == 0) fmt::print("{}", invocation.help);
    if (all_was_written()) return 0;
    return end_by_failure("cpnsa", output_was_lost, launch, nullptr);
  }
  return run_job(invocation, launch);
}
