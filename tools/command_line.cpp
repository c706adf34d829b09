#include "tools/command_line.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "cpnsa/info.hpp"
#include "cpnsa/schema.hpp"
#include "tools/bench.hpp"
#include "tools/config_flags.hpp"
#include "tools/decode.hpp"
#include "tools/doctor.hpp"
#include "tools/flags.hpp"
#include "tools/info.hpp"
#include "tools/plan.hpp"
#include "tools/provenance.hpp"
#include "tools/run.hpp"

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
  mpirun -n 8 cpnsa bench -b 128K -e 1M --partition zigzag --selection local -J bench.json
  cpnsa bench --decode --batch 32 -b 64K -e 64K --graph)";

void add_run(CLI::App& app, RunOptions& options) {
  Flags flags(app);
  flags.add_path("--in", options.in, "DIR", "folder of the layer's inputs (required)");
  flags.add_path("--out", options.out, "DIR", "folder for the results (required)");
  flags.add_execution(options.execution);
  app.footer(fmt::format(fmt::runtime(run_footer), input_files(), symbols_of(schema::out_shape)));
}

constexpr const char* decode_footer = R"(
--in holds the same files as for cpnsa run; the documents of cu_seqlens.npy are the sequences of one batch. With several
ranks the sequences' pages are dealt out to them.
--out gets out.npy and selected.npy, as cpnsa run --no-backward writes them, and stats.json.

Examples:
  cpnsa decode --in layer --out results --prefill 1000 --queries 4
  mpirun -n 4 cpnsa decode --in layer --out results --dtype f64 --truncate 20)";

void add_decode(CLI::App& app, DecodeOptions& options) {
  constexpr std::int64_t max_tokens = std::int64_t{1} << 31;
  Flags flags(app);
  flags.add_path("--in", options.in, "DIR", "folder of the layer's inputs (required)");
  flags.add_path("--out", options.out, "DIR", "folder for the results (required)");
  flags.add_integer("--prefill", options.feed.prefill, 0, max_tokens,
                    "tokens of each sequence that are appended by chunks (default: half of it)", true);
  flags.add_integer("--chunk", options.feed.chunk, 1, max_tokens, "tokens of a chunk, at most (default 256)", true);
  flags.add_integer("--queries", options.feed.queries, 1, max_tokens, "tokens a step after the prefill (default 1)");
  flags.add_integer("--page", options.page, 1, max_tokens,
                    "tokens of a page, a multiple of select_block (default: select_block)", true);
  flags.add_integer("--truncate", options.feed.truncate, 0, max_tokens,
                    "cut every sequence back by up to N tokens after each tenth step, and append them again");
  flags.add_integer("--seed", options.feed.seed, 0, schema::max_extent, "of the order of the pages (default 1)");
  flags.add_switch("--replicate-summaries", options.replicate_summaries, true,
                   "all summaries on every rank: more memory, one message a step in place of three");
  flags.add_place(options.execution);
  app.footer(decode_footer);
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
  flags.add_path("--trace", options.trace, "FILE",
                 "write the last row's last step there, for chrome://tracing; an existing file is an error");
  add_config(flags, options.config, options.hidden);
  flags.add_switch("--separate-kv", options.separate_kv, true, "keys and values of their own for each branch");
  flags.add_switch("--decode", options.decode, true, "time decoding steps of sequences with so many tokens each");
  flags.add_integer("--batch", options.batch, 1, max_factor, "with --decode: sequences of a step (default 1)");
  flags.add_integer("--queries", options.queries, 1, max_tokens,
                    "with --decode: tokens that a step appends to each sequence (default 1)");
  flags.add_integer("--page", options.page, 1, max_tokens,
                    "with --decode: tokens of a page, a multiple of select_block (default: select_block)", true);
  flags.add_switch("--graph", options.graph, true, "with --decode, on a GPU: replay the step from a CUDA graph");
  flags.add_choice("--selection", options.selection,
                   "random: every query's blocks independent; local: runs of 64 queries share most (default random)");
  flags.add_integer("--seed", options.seed, 0, schema::max_extent, "of the random inputs (default 1)");
  flags.add_execution(options.execution);
  app.footer(bench_footer);
}

std::string names_of_commands(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands({})) names.push_back(command->get_name());
  return fmt::format("{} or {}", fmt::join(names.begin(), names.end() - 1, ", "), names.back());
}

void add_info(CLI::App& app, InfoOptions& options) {
  Flags flags(app);
  flags.add_json(options.json);
  flags.add_choice("--dtype", options.dtype, "the layer's type (default bf16)");
  add_config(flags, options.config, options.hidden);
  app.footer(R"(
With a configuration (--heads, --kv-heads, --dk and --dv at least): which kernels run each op, on each GPU of this
machine, or on GPUs of compute capability 8.0 and 9.0 where there is none.

Examples:
  cpnsa info
  cpnsa info --heads 64 --kv-heads 4 --dk 192 --dv 128 -J)");
}

void add_plan(CLI::App& app, PlanOptions& options) {
  constexpr std::int64_t max_tokens = Partition::max_tokens, max_ranks = 1 << 16, max_layers = 1 << 16,
                         max_sequences = 1 << 20;
  Flags flags(app);
  flags.add_integer("--tokens", options.tokens, 1, max_tokens, "tokens of the packed sequence (default 128K)", true);
  flags.add_integer("--documents", options.documents, 1, max_tokens, "documents in them, equally long (default 1)");
  flags.add_integers("--ranks", options.ranks, 1, max_ranks, "numbers of ranks, one GPU each (default 8)");
  flags.add_integer("--layers", options.layers, 1, max_layers, "layers whose state is held at once (default 1)");
  flags.add_text("--gpu", options.gpu, "NAME", "h100 or h200: built-in times and memory (default h200)");
  flags.add_path("--measured", options.measured, "FILE", "times from the JSON of `cpnsa bench` on one rank instead");
  flags.add_path("--links", options.links, "FILE",
                 "bandwidths from the JSON of `cpnsa doctor` instead of the built-in");
  flags.add_number("--memory", options.memory_gib, "GiB that a rank may use (default the GPU's less 3)");
  flags.add_number("--other", options.other_gib, "GiB of each rank that the rest of the model takes (default 0)");
  flags.add_choice("--device", options.device, std::array{DeviceKind::cpu, DeviceKind::cuda},
                   "device whose memory is counted (default cuda)");
  flags.add_choice("--dtype", options.dtype, "the layer's type (default bf16)");
  flags.add_choice("--partition", options.partition, "which rank owns which tokens (default zigzag)");
  flags.add_choice("--exchange", options.exchange, "how selected blocks of other ranks are moved (default auto)");
  flags.add_choice("--selection", options.selection, "how queries choose blocks, as in bench (default random)");
  flags.add_switch("--separate-kv", options.separate_kv, true, "keys and values of their own for each branch");
  flags.add_switch("--no-backward", options.backward, false, "prefill: forward only");
  flags.add_switch("--keep-blocks", options.keep_blocks, true, "keep fetched blocks for the backward");
  flags.add_switch("--recompute-branches", options.recompute_branches, true,
                   "compute the branches' outputs again in the backward");
  flags.add_switch("--decode", options.decode, true, "decoding steps of sequences with so many tokens each");
  flags.add_integer("--batch", options.batch, 1, max_sequences, "with --decode: sequences of a step (default 1)");
  flags.add_integer("--queries", options.queries, 1, max_tokens,
                    "with --decode: tokens that a step appends to each sequence (default 1)");
  flags.add_integer("--page", options.page, 1, max_tokens,
                    "with --decode: tokens of a page, a multiple of select_block (default: select_block)", true);
  flags.add_switch("--replicate-summaries", options.replicate_summaries, true,
                   "with --decode: all summaries on every rank, one message a step in place of three");
  add_config(flags, options.config, options.hidden);
  flags.add_json(options.json);
  app.footer(R"(
Needs no GPU. Exit status 3 if the layers do not fit on one of the numbers of ranks.

Examples:
  cpnsa plan --decode --tokens 128K --batch 64 --ranks 1,8 --layers 32
  cpnsa plan --tokens 1M --ranks 8,64,512 --layers 32
  cpnsa plan --tokens 128K --ranks 2 --measured bench.json --links doctor.json -J)");
}

void add_doctor(CLI::App& app, DoctorOptions& options) {
  Flags flags(app);
  flags.add_integer("--bytes", options.bytes, 8, std::int64_t{1} << 32, "of a large message (default 4M)", true);
  flags.add_integer("--iters", options.iterations, 1, 1000, "repetitions; the fastest counts (default 5)");
  flags.add_json(options.json);
  flags.add_execution(options.execution);
  app.footer(R"(
Compares the ranks of a job and exercises every pair of them, every collective and every exchange mode. Exit status 1
if a fault is serious.

Examples:
  mpirun -n 8 cpnsa doctor
  mpirun -n 16 cpnsa doctor -J doctor.json
  cpnsa doctor --ranks 4)");
}

// The first mistake in a command line that CLI11 could read; empty if there is none.
std::string problem_of(const CLI::App& app, const CLI::App& run, const RunOptions& options, const CLI::App& decode,
                       const DecodeOptions& decode_options) {
  const auto commands = app.get_subcommands();
  for (const CLI::App* part : {&app, commands.empty() ? &app : commands.front()}) {
    const std::vector<std::string> strangers = part->remaining();
    if (!strangers.empty())
      return fmt::format("{}: found an unknown argument, expected {}", strangers.front(),
                         part == &app
                             ? fmt::format("one command, {}, and its flags (cpnsa --help)", names_of_commands(app))
                             : fmt::format("a flag of cpnsa {} --help", part->get_name()));
  }
  if (commands.empty()) return fmt::format("found no command, expected {} (cpnsa --help)", names_of_commands(app));
  if (!run.parsed() && !decode.parsed()) return {};
  if ((run.parsed() ? options.in : decode_options.in).empty())
    return "--in: found nothing, expected the folder of the inputs";
  if ((run.parsed() ? options.out : decode_options.out).empty())
    return "--out: found nothing, expected a folder for the results";
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

std::string DecodeOptions::describe() const {
  return fmt::format("--prefill={} --chunk={} --queries={} --page={} --truncate={} --seed={} --replicate-summaries={}",
                     feed.prefill ? std::to_string(*feed.prefill) : "auto", feed.chunk, feed.queries, page,
                     feed.truncate, feed.seed, replicate_summaries);
}

std::string BenchOptions::describe() const {
  return fmt::format(
      "--begin={} --end={} --factor={} --documents={} --iters={} --warmup={} --hidden={} --separate-kv={} "
      "--selection={} --seed={} --decode={} --batch={} --queries={} --page={} --graph={} {}",
      begin.value_or(0), end.value_or(0), factor, documents, iterations.value_or(0), warmups.value_or(0), hidden,
      separate_kv, name_of(selection), seed, decode, batch, queries, page, graph, config.describe());
}

Invocation parse_command_line(int argc, const char* const* argv) {
  Invocation invocation;
  const auto run_options = std::make_shared<RunOptions>();
  const auto decode_options = std::make_shared<DecodeOptions>();
  const auto bench_options = std::make_shared<BenchOptions>();
  const auto info_options = std::make_shared<InfoOptions>();
  const auto plan_options = std::make_shared<PlanOptions>();
  const auto doctor_options = std::make_shared<DoctorOptions>();

  CLI::App app("cpnsa: Native Sparse Attention over a sequence sharded across ranks", "cpnsa");
  app.set_version_flag("--version", fmt::format("cpnsa {} (commit {}; {})", build_info().version, build_info().commit,
                                                fmt::join(built_backends(), ", ")));
  app.footer("\nExamples:\n  cpnsa run --in layer --out results --ranks 4\n  cpnsa bench -b 1K -e 4K");
  CLI::App& run = *app.add_subcommand("run", "One attention layer, forward and backward, over tensors in files");
  CLI::App& decode = *app.add_subcommand("decode", "One attention layer by prefill and decoding over a paged KV cache");
  CLI::App& bench = *app.add_subcommand("bench", "How long a layer takes, stage by stage");
  CLI::App& info =
      *app.add_subcommand("info", "What this build and this machine have, and which kernels serve a layer");
  CLI::App& plan = *app.add_subcommand("plan", "Whether layers fit on a number of GPUs and how long they take there");
  CLI::App& doctor = *app.add_subcommand("doctor", "Faults of a job's ranks and of the links between them");
  for (CLI::App* part : {&app, &run, &decode, &bench, &info, &plan, &doctor}) part->allow_extras();
  app.require_subcommand(0, 1);
  add_run(run, *run_options);
  add_decode(decode, *decode_options);
  add_bench(bench, *bench_options);
  add_info(info, *info_options);
  add_plan(plan, *plan_options);
  add_doctor(doctor, *doctor_options);

  try {
    app.parse(argc, argv);
    invocation.problem = problem_of(app, run, *run_options, decode, *decode_options);
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
  const auto choose = [&](const char* name, const ExecutionOptions& execution,
                          std::function<int(const RankPlace&)> run_rank) {
    invocation.command = invocation.help.empty() ? name : "help";
    invocation.execution = execution;
    invocation.run_rank = std::move(run_rank);
  };
  if (bench.parsed())
    choose("bench", bench_options->execution, [bench_options](const RankPlace& place) {
      tool::bench(*bench_options, place);
      return 0;
    });
  else if (decode.parsed())
    choose("decode", decode_options->execution, [decode_options](const RankPlace& place) {
      tool::decode(*decode_options, place);
      return 0;
    });
  else if (doctor.parsed())
    choose("doctor", doctor_options->execution,
           [doctor_options](const RankPlace& place) { return tool::doctor(*doctor_options, place); });
  else if (plan.parsed())
    choose("plan", {}, [plan_options](const RankPlace& place) { return tool::plan(*plan_options, place); });
  else if (info.parsed())
    choose("info", {}, [info_options](const RankPlace& place) {
      if (place.control.rank() == 0) tool::info(*info_options);
      return 0;
    });
  else
    choose("run", run_options->execution, [run_options](const RankPlace& place) {
      tool::run(*run_options, place);
      return 0;
    });
  return invocation;
}

}  // namespace cpnsa::tool
