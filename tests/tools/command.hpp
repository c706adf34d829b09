#pragma once

#include <optional>
#include <string>
#include <vector>

namespace cpnsa::test {

/// What a process left.
struct Outcome {
  int status = -1;  ///< exit status; 128 + signal when it was killed
  std::string out;
  std::string err;

  /// Lines of standard error that start with "cpnsa:"; mpirun adds lines of its own.
  std::vector<std::string> own_error_lines() const;
  std::vector<std::string> error_lines() const;
};

/// Runs a program with its arguments and waits for it, for at most two minutes.
Outcome run_process(const std::vector<std::string>& command);

/// How the command's ranks are started.
struct Launcher {
  std::string name;
  std::vector<std::string> before;  ///< in front of the command
  std::vector<std::string> after;   ///< behind its arguments
  bool by_mpi = false;
};
Launcher one_rank();
Launcher threads(int ranks);
std::optional<Launcher> processes(int ranks);  ///< none in a build without MPI

/// cpnsa with these arguments.
Outcome run_command(const Launcher& launcher, const std::vector<std::string>& arguments);
std::string command_path();

}  // namespace cpnsa::test
