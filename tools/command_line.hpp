#pragma once

#include <optional>
#include <string>

#include "tools/options.hpp"

namespace cpnsa::tool {

/// The command that was given. Where the command line is wrong, the options are those read up to there: --transport and
/// --ranks still say which ranks must be told.
struct Invocation {
  std::optional<RunOptions> run;
  std::optional<BenchOptions> bench;
  std::string help;     ///< text to print instead of running: --help or --version
  std::string problem;  ///< "--ranks: found x, expected ...", or empty
};

Invocation parse_command_line(int argc, const char* const* argv);

}  // namespace cpnsa::tool
