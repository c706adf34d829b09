#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "examples/model/sharded_attention.hpp"
#include "tools/options.hpp"

namespace language_model {

struct Options {
  std::string text;  ///< empty: the first of default_texts() that exists
  std::string out = "language_model";
  std::vector<std::string> compare;
  std::int64_t steps = 400;
  std::int64_t tokens = 2048;
  int layers = 2;
  std::int64_t width = 64;
  std::int64_t heads = 4;
  std::int64_t kv_heads = 2;
  bool full_attention = false;
  double learning_rate = 4e-3;
  std::uint64_t seed = 1;
  std::int64_t compress_block = 16, compress_stride = 8;  ///< NSA alone uses these and the window
  std::int64_t select_block = 32, select_count = 6;
  std::int64_t window = 64;
  cpnsa::tool::ExecutionOptions execution;  ///< ranks, device, transport, partition, exchange, dtype

  /// Every option that must be equal on all ranks, on one line.
  std::string describe() const;

  /// The kind of attention, except for the type.
  model::AttentionKind attention() const;
};

/// The parsed command line: options, a help text to print, or the error in it.
struct CommandLine {
  Options options;
  std::string help;
  std::string problem;
};
CommandLine parse_command_line(int argc, char** argv);

}  // namespace language_model
