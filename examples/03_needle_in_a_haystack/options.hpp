#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "tools/options.hpp"

namespace needle {

struct Options {
  std::filesystem::path out = "needle";
  std::int64_t steps = 2880;   ///< training steps of all lessons together
  std::int64_t tokens = 4096;  ///< tokens of a training step
  double learning_rate = 5e-3;
  std::int64_t shortest = 1024;  ///< length of the grid's first column; each further column doubles it
  std::int64_t longest = 4096;
  int bands = 10;               ///< rows of the grid
  std::int64_t sequences = 50;  ///< test sequences per length
  std::uint64_t seed = 1;
  cpnsa::tool::ExecutionOptions execution;

  /// Every option that must be equal on all ranks, on one line.
  std::string describe() const;
};

/// The parsed command line: options, a help text to print, or the error in it.
struct CommandLine {
  Options options;
  std::string help;
  std::string problem;
};
CommandLine parse_command_line(int argc, char** argv);

}  // namespace needle
