#include "tools/ending.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "backends/backends.hpp"
#include "cpnsa/flight_recorder.hpp"
#include "cpnsa/interrupt.hpp"

namespace cpnsa::tool {
namespace {

volatile std::sig_atomic_t received_signal = 0;

// The program does not wait for other ranks, so that nothing looks at interrupted(): it ends as if it had no handler.
void end_by_signal(int) {
  std::signal(received_signal, SIG_DFL);
  std::raise(received_signal);
}

void interrupt_once(int signal) {
  received_signal = signal;
  std::signal(signal, SIG_DFL);  // a second one ends the program
  interrupt();
  ::alarm(2);
}

void trace(int) {
  request_trace();
}

// One line: control characters of the problem become blanks.
void print_error(std::string_view program, int rank, std::string problem) {
  for (char& c : problem)
    if (static_cast<unsigned char>(c) < ' ' || c == '\x7f') c = ' ';
  const std::string line =
      fmt::format("{}: error: {}{}\n", program, rank > 0 ? fmt::format("[rank {}] ", rank) : "", problem);
  std::fwrite(line.data(), 1, line.size(), stderr);
  std::fflush(stderr);
}

// How long a rank leaves it to lower ranks to print the error and to end the job.
std::chrono::milliseconds grace_of(int rank) {
  using std::chrono::milliseconds;
  // Rank 0 leaves the others the time to write their flight records, where these are asked for.
  if (rank == 0) return milliseconds(std::getenv("CPNSA_TRACE") ? 500 : 0);
  return milliseconds(1000 + 250 * std::min(rank - 1, 8));
}

}  // namespace

void handle_signals() {
  std::signal(SIGALRM, end_by_signal);
  std::signal(SIGINT, interrupt_once);
  std::signal(SIGTERM, interrupt_once);
  std::signal(SIGUSR1, trace);
}

int end_by_failure(std::string_view program, std::string problem, const Launch& launch,
                   std::unique_ptr<RankGroup> ranks) {
  constexpr int status = 1;
  ::alarm(0);
  // A launcher that ends the job on another rank's error terminates this one before it repeats the error.
  std::signal(SIGINT, SIG_DFL);
  std::signal(SIGTERM, SIG_DFL);
  std::fflush(stdout);
  if (received_signal == SIGTERM) std::_Exit(128 + SIGTERM);  // of a launcher, which reports another rank's error
  if (launch.rank == 0) print_error(program, 0, problem);
  std::this_thread::sleep_for(grace_of(launch.rank));
  if (launch.rank != 0) print_error(program, launch.rank, problem);
  backends::abort_mpi_job(status);  // does not return within a job
  ranks.reset();
  return received_signal != 0 ? 128 + received_signal : status;
}

}  // namespace cpnsa::tool
