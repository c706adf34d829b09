#include "options.hpp"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <array>
#include <optional>

#include "haystack.hpp"
#include "tools/flags.hpp"

namespace needle {
namespace {

using namespace cpnsa::tool;

constexpr const char* description =
    "Trains a model of one layer to retrieve values by their keys from random filler, and asks it for needles at all\n"
    "depths of sequences that are longer, up to --longest. The ranks share each sequence; attention is cpnsa's. "
    "Writes\n"
    "the share of right answers as a table, a CSV file and a heat map (SVG).";

constexpr const char* footer = R"(
Ranks are the processes that mpirun starts, or threads of this process with --ranks; on GPUs, processes have one each
and meet through NCCL, threads share one.

Examples:
  needle_in_a_haystack                                         # minutes on a CPU
  mpirun -n 4 needle_in_a_haystack
  mpirun -n 4 needle_in_a_haystack --device cuda --longest 64K --sequences 50)";

constexpr std::int64_t min_step = 512, max_sequence = std::int64_t{1} << 24;

void add_flags(Flags& flags, Options& options, std::optional<double>& learning_rate) {
  flags.add_path("--out", options.out, "DIR", "folder for needle.csv and needle.svg (default: needle)");
  flags.add_integer("--steps", options.steps, 4, 10'000'000, "training steps (default: 2880)");
  flags.add_integer("--tokens", options.tokens, min_step, max_sequence,
                    "tokens of a training step, and the most of a sequence to learn from (default: 4K)", true);
  flags.add_number("--learning-rate", learning_rate, "highest learning rate (default: 0.005)");
  flags.add_integer("--shortest", options.shortest, shortest_test, max_sequence,
                    "length of the grid's first column; each next one is twice as long (default: 1K)", true);
  flags.add_integer("--longest", options.longest, shortest_test, max_sequence,
                    "length of the grid's last column, at most (default: 4K)", true);
  flags.add_integer("--bands", options.bands, 1, keys, "rows of the grid: equal parts of the depths (default: 10)");
  flags.add_integer("--sequences", options.sequences, 1, 1'000'000,
                    "sequences of each length; one asks for 64 / bands needles in each band (default: 50)");
  flags.add_integer("--seed", options.seed, 0, std::int64_t{1} << 62,
                    "of the parameters and of all haystacks (default: 1)");

  ExecutionOptions& execution = options.execution;
  flags.add_choice("--device", execution.device, "what computes; auto: a GPU when there is one");
  flags.add_choice("--transport", execution.transport,
                   "what moves data between ranks; auto: threads, or mpi (nccl on GPUs) under mpirun");
  flags.add_integer("--ranks", execution.ranks, 1, 256,
                    "ranks, as threads of this process; under mpirun its number of processes (default: 1)");
  flags.add_choice("--partition", execution.partition,
                   std::array{cpnsa::PartitionKind::contiguous, cpnsa::PartitionKind::zigzag},
                   "which rank owns which tokens (default: zigzag)");
  flags.add_choice("--exchange", execution.exchange,
                   "how selected blocks of other ranks are brought in (default: auto)");
  flags.add_deadline(execution.deadline);
  flags.add_choice("--dtype", execution.dtype, std::array{cpnsa::DType::f64, cpnsa::DType::f32, cpnsa::DType::bf16},
                   "type of the model: f32 (default) or f64 on the CPU; bf16 on CUDA, its parameters and sums f32");
}

std::string problem_of(const Options& options) {
  if (options.longest < options.shortest)
    return fmt::format("--longest: found {}, expected at least --shortest {}", options.longest, options.shortest);
  if (options.learning_rate <= 0 || options.learning_rate > 10)
    return fmt::format("--learning-rate: found {}, expected more than 0 and at most 10", options.learning_rate);
  return {};
}

// Some messages of CLI11 have several lines.
std::string one_line(std::string text) {
  for (char& c : text)
    if (static_cast<unsigned char>(c) < ' ') c = ' ';
  return text;
}

}  // namespace

std::string Options::describe() const {
  return fmt::format("steps={} tokens={} learning_rate={} shortest={} longest={} bands={} sequences={} seed={} {}",
                     steps, tokens, learning_rate, shortest, longest, bands, sequences, seed, execution.describe());
}

CommandLine parse_command_line(int argc, char** argv) {
  CommandLine line;
  line.options.execution.partition = cpnsa::PartitionKind::zigzag;
  CLI::App app(description, "needle_in_a_haystack");
  app.footer(footer);
  app.get_formatter()->column_width(34);
  Flags flags(app);
  std::optional<double> learning_rate;
  add_flags(flags, line.options, learning_rate);
  try {
    app.parse(argc, argv);
    line.options.learning_rate = learning_rate.value_or(line.options.learning_rate);
    line.problem = problem_of(line.options);
  } catch (const CLI::CallForHelp&) {
    line.help = app.help();
  } catch (const CLI::ParseError& error) {
    line.problem = one_line(error.what());
  }
  return line;
}

}  // namespace needle
