#include "options.hpp"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <map>

#include "text.hpp"

namespace language_model {
namespace {

constexpr const char* description =
    "Trains a small byte-level language model on a text. Each step is one sequence of the text, sharded over the\n"
    "ranks; attention is cpnsa's, forward and backward. The loss curve is written as CSV and as a picture (SVG).";

constexpr const char* footer = R"(
Ranks are the processes that mpirun starts, or threads of this process with --ranks. The curve depends on the number of
ranks, the partition and the exchange by rounding only.

Examples:
  mpirun -n 4 language_model
  language_model --ranks 2 --attention full --out full
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
  return {};
}

void add_flags(CLI::App& app, Options& options) {
  const std::map<std::string, bool> attentions{{"nsa", false}, {"full", true}};
  const std::map<std::string, cpnsa::DType> dtypes{{"f64", cpnsa::DType::f64}, {"f32", cpnsa::DType::f32}};
  const std::map<std::string, bool> partitions{{"contiguous", false}, {"zigzag", true}};
  const std::map<std::string, cpnsa::Exchange> exchanges{
      {"auto", cpnsa::Exchange::automatic}, {"fetch", cpnsa::Exchange::fetch}, {"gather", cpnsa::Exchange::gather}};
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
  app.add_option("--learning-rate", options.learning_rate, "highest learning rate (default: 0.004)")
      ->check(CLI::Range(1e-9, 10.0));
  app.add_option("--seed", options.seed, "of the parameters and of the order of the text (default: 1)");
  app.add_option("--ranks", options.ranks, "ranks as threads of this process (default: 1)")->check(CLI::Range(1, 256));
  choice("--dtype", options.dtype, dtypes, "f64|f32",
         "type of the attention's tensors (default: f64); with f32 the curves of different rank counts part slowly");
  choice("--partition", options.zigzag, partitions, "contiguous|zigzag", "which tokens a rank owns (default: zigzag)");
  choice("--exchange", options.exchange, exchanges, "auto|fetch|gather",
         "how selected blocks of other ranks are brought in (default: auto)");
}

// CLI11 puts some messages on several lines.
std::string one_line(std::string text) {
  for (char& c : text)
    if (static_cast<unsigned char>(c) < ' ') c = ' ';
  return text;
}

}  // namespace

std::string Options::describe() const {
  return fmt::format(
      "steps={} tokens={} layers={} width={} heads={} kv_heads={} attention={} learning_rate={} seed={} dtype={} "
      "partition={} "
      "exchange={}",
      steps, tokens, layers, width, heads, kv_heads, full_attention ? "full" : "nsa", learning_rate, seed,
      cpnsa::name_of(dtype), zigzag ? "zigzag" : "contiguous", cpnsa::name_of(exchange));
}

CommandLine parse_command_line(int argc, char** argv) {
  CommandLine line;
  CLI::App app(description, "language_model");
  app.footer(footer);
  app.get_formatter()->column_width(34);
  add_flags(app, line.options);
  try {
    app.parse(argc, argv);
    line.problem = problem_of(line.options);
  } catch (const CLI::CallForHelp&) {
    line.help = app.help();
  } catch (const CLI::ParseError& error) {
    line.problem = one_line(error.what());
  }
  return line;
}

}  // namespace language_model
