#include "options.hpp"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <map>

#include "cpnsa/error.hpp"
#include "text.hpp"

namespace language_model {
namespace {

constexpr const char* description =
    "Trains a small byte-level language model on a text. Each step is one sequence of the text, sharded over the\n"
    "ranks; attention is cpnsa's, forward and backward. The loss curve is written as CSV and as a picture (SVG).";

using cpnsa::PartitionKind;
using cpnsa::tool::DeviceKind;
using cpnsa::tool::TransportKind;

constexpr const char* footer = R"(
Ranks are the processes that mpirun starts, or threads of this process with --ranks; on GPUs, processes have one each
and meet through NCCL, threads share one. The curve depends on the number of
ranks, the partition and the exchange by rounding only.

Examples:
  mpirun -n 4 language_model
  language_model --ranks 2 --attention full --out full
  mpirun -n 4 language_model --device cuda --tokens 65536 --text book.txt
  language_model --ranks 2 --text book.txt --compare full/loss.csv)";

std::string problem_of(const Options& options) {
  const auto wrong = [](const char* flag, auto found, const std::string& expected) {
    return fmt::format("{}: found {}, expected {}", flag, found, expected);
  };
  if (!std::isfinite(options.learning_rate)) return wrong("--learning-rate", options.learning_rate, "a finite number");
  if (options.heads % options.kv_heads != 0)
    return wrong("--kv-heads", options.kv_heads, fmt::format("a divisor of --heads {}", options.heads));
  if (options.width % (2 * options.heads) != 0)
    return wrong("--width", options.width, fmt::format("a multiple of twice --heads {}", options.heads));
  try {
    options.attention().config.validate();
  } catch (const cpnsa::ConfigError& error) {
    return error.what();
  }
  return {};
}

void add_flags(CLI::App& app, Options& options) {
  const std::map<std::string, bool> attentions{{"nsa", false}, {"full", true}};
  const std::map<std::string, DeviceKind> devices{{"cpu", DeviceKind::cpu}, {"cuda", DeviceKind::cuda}};
  const std::map<std::string, TransportKind> transports{{"auto", TransportKind::automatic},
                                                        {"threads", TransportKind::threads},
                                                        {"mpi", TransportKind::mpi},
                                                        {"nccl", TransportKind::nccl}};
  const std::map<std::string, cpnsa::DType> dtypes{
      {"f64", cpnsa::DType::f64}, {"f32", cpnsa::DType::f32}, {"bf16", cpnsa::DType::bf16}};
  const std::map<std::string, PartitionKind> partitions{{"contiguous", PartitionKind::contiguous},
                                                        {"zigzag", PartitionKind::zigzag}};
  const std::map<std::string, cpnsa::Exchange> exchanges{{"auto", cpnsa::Exchange::automatic},
                                                         {"fetch", cpnsa::Exchange::fetch},
                                                         {"gather", cpnsa::Exchange::gather},
                                                         {"pull", cpnsa::Exchange::pull}};
  const auto choice = [&](const char* flag, auto& value, const auto& choices, const char* names, const char* help) {
    app.add_option(flag, value, help)->transform(CLI::CheckedTransformer(choices))->type_name(names);
  };

  app.add_option("--text", options.text,
                 fmt::format("text to learn (default: the first of {} that exists)", fmt::join(default_texts(), ", ")))
      ->type_name("FILE");
  app.add_option("--out", options.out, "folder for loss.csv and loss.svg (default: language_model)")->type_name("DIR");
  app.add_option("--compare", options.compare, "loss.csv of another run, drawn into the same picture; repeatable")
      ->type_name("CSV")
      ->expected(1)
      ->take_all();
  app.add_option("--steps", options.steps, "training steps (default: 400)")->check(CLI::Range(1, 10000000));
  app.add_option("--tokens", options.tokens, "bytes of the sequence of a step (default: 2048)")
      ->check(CLI::Range(1, 1 << 24));
  app.add_option("--layers", options.layers, "layers of the model (default: 2)")->check(CLI::Range(1, 100));
  app.add_option("--width", options.width, "channels of the model (default: 64)")->check(CLI::Range(1, 16384));
  app.add_option("--heads", options.heads, "query heads (default: 4)")->check(CLI::Range(1, 1024));
  app.add_option("--kv-heads", options.kv_heads, "key and value heads (default: 2)")->check(CLI::Range(1, 1024));
  choice("--attention", options.full_attention, attentions, "nsa|full",
         "native sparse attention, or all earlier tokens (default: nsa)");
  const auto tokens = [&](const char* flag, std::int64_t& value, const char* help) {
    app.add_option(flag, value, help)->check(CLI::Range(1, 1 << 24));
  };
  tokens("--compress-block", options.compress_block, "tokens that a summary covers (default: 16)");
  tokens("--compress-stride", options.compress_stride, "tokens between summaries (default: 8)");
  tokens("--select-block", options.select_block, "tokens of a selection block (default: 32)");
  tokens("--select-count", options.select_count, "blocks that a query selects (default: 6)");
  tokens("--window", options.window, "tokens of the sliding window (default: 64)");
  app.add_option("--learning-rate", options.learning_rate, "highest learning rate (default: 0.004)")
      ->check(CLI::Range(1e-9, 10.0));
  app.add_option("--seed", options.seed, "of the parameters and of the order of the text (default: 1)");
  cpnsa::tool::ExecutionOptions& execution = options.execution;
  choice("--device", execution.device, devices, "cpu|cuda", "what computes (default: cpu)");
  choice("--transport", execution.transport, transports, "auto|threads|mpi|nccl",
         "what moves data between ranks (default: auto: threads, or mpi under mpirun, nccl where each has a GPU)");
  app.add_option("--ranks", execution.ranks, "ranks as threads of this process (default: 1)")
      ->check(CLI::Range(1, 256));
  app.add_option("--deadline", execution.deadline,
                 "seconds that a rank waits for the others before it gives up and says for what (default: the variable "
                 "CPNSA_DEADLINE, or 300)")
      ->check(CLI::Range(1, 1000000));
  choice("--dtype", execution.dtype, dtypes, "f64|f32|bf16",
         "type of the model: f64 (default) or f32 on the CPU, where with f32 the curves of different rank counts part "
         "slowly; bf16 on CUDA, its parameters and sums f32");
  choice("--partition", execution.partition, partitions, "contiguous|zigzag",
         "which tokens a rank owns (default: zigzag)");
  choice("--exchange", execution.exchange, exchanges, "auto|fetch|gather|pull",
         "how selected blocks of other ranks are brought in (default: auto)");
}

// Some messages of CLI11 have several lines.
std::string one_line(std::string text) {
  for (char& c : text)
    if (static_cast<unsigned char>(c) < ' ') c = ' ';
  return text;
}

}  // namespace

std::string Options::describe() const {
  return fmt::format(
      "steps={} tokens={} layers={} width={} heads={} kv_heads={} attention={} compress_block={} compress_stride={} "
      "select_block={} select_count={} window={} learning_rate={} seed={} {}",
      steps, tokens, layers, width, heads, kv_heads, full_attention ? "full" : "nsa", compress_block, compress_stride,
      select_block, select_count, window, learning_rate, seed, execution.describe());
}

model::AttentionKind Options::attention() const {
  model::AttentionKind kind = model::AttentionKind::nsa(heads, kv_heads, width / heads);
  kind.config.compress_block = compress_block;
  kind.config.compress_stride = compress_stride;
  kind.config.select_block = select_block;
  kind.config.select_count = select_count;
  kind.config.window = window;
  kind.options.exchange = execution.exchange;
  return full_attention ? kind.full(tokens) : kind;
}

CommandLine parse_command_line(int argc, char** argv) {
  CommandLine line;
  line.options.execution.device = DeviceKind::cpu;
  line.options.execution.partition = PartitionKind::zigzag;
  CLI::App app(description, "language_model");
  app.footer(footer);
  app.get_formatter()->column_width(34);
  add_flags(app, line.options);
  try {
    app.parse(argc, argv);
    line.problem = problem_of(line.options);
    cpnsa::tool::ExecutionOptions& execution = line.options.execution;
    if (execution.device == DeviceKind::cpu && !execution.dtype) execution.dtype = cpnsa::DType::f64;
  } catch (const CLI::CallForHelp&) {
    line.help = app.help();
  } catch (const CLI::ParseError& error) {
    line.problem = one_line(error.what());
  }
  return line;
}

}  // namespace language_model
