#include "tests/tools/command.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <stdexcept>
#include <thread>

#include "tests/tools/test_files.hpp"

namespace cpnsa::test {
namespace {

constexpr std::chrono::seconds deadline{120};

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

// In the child: replaces the process.
[[noreturn]] void execute(const std::vector<std::string>& command, const std::string& out, const std::string& err) {
  std::vector<char*> arguments;
  for (const std::string& argument : command) arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);
  if (!std::freopen(out.c_str(), "w", stdout) || !std::freopen(err.c_str(), "w", stderr)) _exit(126);
  // Open MPI refuses root, and more ranks than cores, unless told otherwise.
  for (const char* variable :
       {"OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "OMPI_MCA_rmaps_base_oversubscribe"})
    ::setenv(variable, "1", 1);
  ::setpgid(0, 0);
  ::execvp(arguments[0], arguments.data());
  _exit(127);
}

}  // namespace

std::vector<std::string> Outcome::error_lines() const {
  return lines_of(err);
}

std::vector<std::string> Outcome::own_error_lines() const {
  std::vector<std::string> own;
  for (const std::string& line : error_lines())
    if (line.starts_with("cpnsa:")) own.push_back(line);
  return own;
}

Outcome run_process(const std::vector<std::string>& command) {
  const TemporaryFolder folder;
  const std::string out = folder.path() / "out", err = folder.path() / "err";
  std::fflush(nullptr);  // or the child would print what this process has yet to print
  const pid_t child = ::fork();
  if (child < 0) throw std::runtime_error("cannot start a process");
  if (child == 0) execute(command, out, err);

  int status = 0;
  const auto end = std::chrono::steady_clock::now() + deadline;
  while (::waitpid(child, &status, WNOHANG) == 0) {
    if (std::chrono::steady_clock::now() > end) {
      ::kill(-child, SIGKILL);
      ::waitpid(child, &status, 0);
      throw std::runtime_error(command[0] + " did not end");
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), read_file(out), read_file(err)};
}

std::string command_path() {
  return CPNSA_TEST_COMMAND;
}

Launcher one_rank() {
  return {"one rank", {}, {}, false};
}

Launcher threads(int ranks) {
  return {std::to_string(ranks) + " threads", {}, {"--ranks", std::to_string(ranks)}, false};
}

std::optional<Launcher> processes(int ranks) {
  const std::string mpiexec = CPNSA_TEST_MPIEXEC;
  if (mpiexec.empty()) return std::nullopt;
  return Launcher{std::to_string(ranks) + " processes", {mpiexec, "-n", std::to_string(ranks)}, {}, true};
}

Outcome run_command(const Launcher& launcher, const std::vector<std::string>& arguments) {
  std::vector<std::string> command = launcher.before;
  command.push_back(command_path());
  command.insert(command.end(), arguments.begin(), arguments.end());
  command.insert(command.end(), launcher.after.begin(), launcher.after.end());
  return run_process(command);
}

}  // namespace cpnsa::test
