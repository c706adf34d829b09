#include "tools/command_line.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <vector>

#include "cpnsa/schema.hpp"
#include "tools/flags.hpp"

namespace cpnsa::tool {
namespace {

constexpr const char* run_footer = R"(
--in holds config.json and NumPy files (C order, little endian, f2/f4/f8):
{}  cu_seqlens.npy [documents + 1] (optional, i4/i8)
  dout.npy {} (optional: the backward runs too)
--out gets out.npy, selected.npy, d<name>.npy of every input, in the sequence's order, and stats.json. It appears
  complete or not at all; all ranks must see the same file system.

Examples:
  cpnsa run --in layer --out results --ranks 4 --partition zigzag --dtype f64
  mpirun -n 4 cpnsa run --in layer --out results --exchange fetch)";

std::string symbols_of(const schema::Shape& shape) {
  std::vector<std::string_view> symbols;
  for (const schema::Extent extent : shape) symbols.push_back(name_of(extent));
  return fmt::format("[{}]", fmt::join(symbols, ", "));
}

// A line for each file of the inputs.
std::string input_files() {
  std::string text;
  for (const schema::Tensor& tensor : schema::tensors) {
    text += fmt::format("  {}.npy {}", tensor.name.view(), symbols_of(tensor.shape));
    if (tensor.only) text += fmt::format(" (compressor {})", name_of(*tensor.only));
    if (!tensor.required) text += " (optional)";
    if (!tensor.shared.empty()) text += fmt::format(" (or one {}.npy for all branches)", tensor.shared);
    text += '\n';
  }
  return text;
}

constexpr const char* bench_footer = R"(
Rows are sequence lengths, columns the stages' milliseconds: medians over the iterations of the slowest rank. Inputs are
random normal; the defaults depend on the device (GPU: -b 8K -e 64K, 64 / 4 heads of 128, bf16).

Examples:
  cpnsa bench -b 1K -e 4K --ranks 2
  mpirun -n 8 cpnsa bench -b 128K -e 1M --partition zigzag --selection local -J bench.json)";

void add_run(CLI::App& app, RunOptions& options) {
  Flags flags(app);
  flags.add_path("--in", options.in, "DIR", "folder of the layer's inputs (required)");
  flags.add_path("--out", options.out, "DIR", "folder for the results (required)");
  flags.add_execution(options.execution);
  app.footer(fmt::format(fmt::runtime(run_footer), input_files(), symbols_of(schema::out_shape)));
}

// "--compress-block,--compress_block": the key as a flag, and as it stands in config.json.
std::string flags_of(std::string_view key, const std::string& short_name = {}) {
  std::string dashed(key);
  std::replace(dashed.begin(), dashed.end(), '_', '-');
  std::string names = short_name.empty() ? "" : short_name + ",";
  names += "--" + dashed;
  if (dashed != key) names += fmt::format(",--{}", key);
  return names;
}

std::string short_name_of(std::string_view key) {
  if (key == "num_q_heads") return "--heads";
  if (key == "num_kv_heads") return "--kv-heads";
  if (key == "head_dim_qk") return "--dk";
  if (key == "head_dim_v") return "--dv";
  return {};
}

void add_key(Flags& flags, const schema::ConfigKey& key, std::int64_t& value) {
  flags.add_integer(flags_of(key.name, short_name_of(key.name)), value, key.required ? key.min : 0, schema::max_extent,
                    fmt::format("{} (default {})", key.meaning, key.required ? "the device's" : fmt::to_string(value)));
}
void add_key(Flags& flags, const schema::ConfigKey& key, std::optional<double>& value) {
  flags.add_number(flags_of(key.name), value, std::string(key.meaning));
}
template <NamedEnum Choice>
void add_key(Flags& flags, const schema::ConfigKey& key, Choice& value) {
  flags.add_choice(flags_of(key.name), value, fmt::format("{} (default {})", key.meaning, name_of(value)));
}

void add_bench(CLI::App& app, BenchOptions& options) {
  constexpr std::int64_t max_tokens = std::int64_t{1} << 40, max_factor = 1 << 20;  // their product fits in 63 bits
  Flags flags(app);
  flags.add_integer("-b,--begin", options.begin, 1, max_tokens, "tokens of the first row (default 1K, GPU 8K)", true);
  flags.add_integer("-e,--end", options.end, 1, max_tokens, "tokens of the last row (default 4K, GPU 64K)", true);
  flags.add_integer("-f,--factor", options.factor, 2, max_factor, "from row to row (default 2)");
  flags.add_integer("--documents", options.documents, 1, max_factor, "documents in a row's tokens (default 1)");
  flags.add_integer("-n,--iters", options.iterations, 1, 1000000, "timed iterations (default 3, GPU 20)");
  flags.add_integer("-w,--warmup", options.warmups, 0, 1000000, "untimed iterations before them (default 1, GPU 5)");
  flags.add_path("-J,--json", options.json, "FILE", "write the results there too; an existing file is an error");
  schema::for_each_key(options.config, [&](const schema::ConfigKey& key, auto& value) {
    if (!key.hidden_width) add_key(flags, key, value);
  });
  flags.add_integer("--hidden", options.hidden, 1, schema::max_extent,
                    "width of the mlp compressors' hidden layer (default twice the head dimension)");
  flags.add_switch("--separate-kv", options.separate_kv, true, "keys and values of their own for each branch");
  flags.add_choice("--selection", options.selection,
                   "random: every query's blocks independent; local: runs of 64 queries share most (default random)");
  flags.add_integer("--seed", options.seed, 0, schema::max_extent, "of the random inputs (default 1)");
  flags.add_execution(options.execution);
  app.footer(bench_footer);
}

// The first mistake in a command line that CLI11 could read; empty if there is none.
std::string problem_of(const CLI::App& app, const CLI::App& run, const RunOptions& options) {
  const auto commands = app.get_subcommands();
  for (const CLI::App* part : {&app, commands.empty() ? &app : commands.front()}) {
    const std::vector<std::string> strangers = part->remaining();
    if (!strangers.empty())
      return fmt::format("{}: found an unknown argument, expected {}", strangers.front(),
                         part == &app ? "one command, run or bench, and its flags (cpnsa --help)"
                                      : fmt::format("a flag of cpnsa {} --help", part->get_name()));
  }
  if (commands.empty()) return "found no command, expected run or bench (cpnsa --help)";
  if (!run.parsed()) return {};
  if (options.in.empty()) return "--in: found nothing, expected the folder of the inputs";
  if (options.out.empty()) return "--out: found nothing, expected a folder for the results";
  return {};
}

// CLI11 says "--flag: At Most 1 required ..." of values, and "flag was given a disallowed ..." of a switch's.
std::string problem_of(const CLI::ArgumentMismatch& error) {
  const std::string_view what = error.what();
  if (const std::size_t given = what.find(" was given "); given != what.npos)
    return fmt::format("--{}: found a value, expected none", what.substr(0, given));
  const std::size_t colon = what.find(": ");
  if (colon == what.npos) return fmt::format("found a wrong number of values ({}), expected one a flag", what);
  return fmt::format("{}: found a wrong number of values ({}), expected one", what.substr(0, colon),
                     what.substr(colon + 2));
}

}  // namespace

AttentionOptions ExecutionOptions::attention_options(DType layer_dtype) const {
  AttentionOptions options;
  options.dtype = layer_dtype;
  options.exchange = exchange;
  options.backward = backward;
  options.refetch_blocks = !keep_blocks;
  options.recompute_branches = recompute_branches;
  options.reuse_saved = true;  // every forward here has one backward
  return options;
}

std::chrono::milliseconds ExecutionOptions::deadline_or_default() const {
  return deadline ? std::chrono::seconds(*deadline) : initial_deadline();
}

std::string ExecutionOptions::describe() const {
  return fmt::format(
      "--ranks={} --partition={} --exchange={} --deadline={}ms --backward={} --keep-blocks={} --recompute-branches={}",
      ranks ? std::to_string(*ranks) : "auto", name_of(partition), name_of(exchange), deadline_or_default().count(),
      backward, keep_blocks, recompute_branches);
}

std::string BenchOptions::describe() const {
  return fmt::format(
      "--begin={} --end={} --factor={} --documents={} --iters={} --warmup={} --hidden={} --separate-kv={} "
      "--selection={} --seed={} {}",
      begin.value_or(0), end.value_or(0), factor, documents, iterations.value_or(0), warmups.value_or(0), hidden,
      separate_kv, name_of(selection), seed, config.describe());
}

Invocation parse_command_line(int argc, const char* const* argv) {
  Invocation invocation;
  RunOptions run_options;
  BenchOptions bench_options;

  CLI::App app("cpnsa: Native Sparse Attention over a sequence sharded across ranks", "cpnsa");
  app.set_version_flag("--version", std::string("cpnsa ") + CPNSA_VERSION);
  app.footer("\nExamples:\n  cpnsa run --in layer --out results --ranks 4\n  cpnsa bench -b 1K -e 4K");
  CLI::App& run = *app.add_subcommand("run", "One attention layer, forward and backward, over tensors in files");
  CLI::App& bench = *app.add_subcommand("bench", "How long a layer takes, stage by stage");
  for (CLI::App* part : {&app, &run, &bench}) part->allow_extras();
  app.require_subcommand(0, 1);
  add_run(run, run_options);
  add_bench(bench, bench_options);

  try {
    app.parse(argc, argv);
    invocation.problem = problem_of(app, run, run_options);
  } catch (const CLI::CallForVersion&) {
    invocation.help = app.version() + "\n";
  } catch (const CLI::CallForHelp&) {
    invocation.help = app.help();
  } catch (const CLI::ArgumentMismatch& error) {
    invocation.problem = problem_of(error);
  } catch (const CLI::ValidationError& error) {  // Flags' own
    invocation.problem = error.what();
  } catch (const CLI::ParseError& error) {
    invocation.problem =
        fmt::format("found \"{}\" on the command line, expected flags as in cpnsa --help", error.what());
  }
  if (bench.parsed())
    invocation.bench = std::move(bench_options);
  else
    invocation.run = std::move(run_options);
  return invocation;
}

}  // namespace cpnsa::tool
