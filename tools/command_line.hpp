#pragma once

#include <functional>
#include <string>

#include "tools/options.hpp"
#include "tools/ranks.hpp"

namespace cpnsa::tool {

/// The command that was given. Where the command line is wrong, the options are those read up to there: --transport and
/// --ranks still say which ranks must be told.
struct Invocation {
  std::string command;         ///< its name, "help" for help; the same on every rank
  ExecutionOptions execution;  ///< which ranks run it
  /// One rank's part; collective. Returns the exit status, the same on every rank.
  std::function<int(const RankPlace&)> run_rank;
  std::string help;     ///< text to print instead of running: --help or --version
  std::string problem;  ///< "--ranks: found x, expected ...", or empty
};

Invocation parse_command_line(int argc, const char* const* argv);

}  // namespace cpnsa::tool
