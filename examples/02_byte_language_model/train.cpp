#include "train.hpp"

#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <optional>

#include "checkpoint.hpp"
#include "cpnsa/error.hpp"
#include "curve.hpp"
#include "plot.hpp"
#include "report.hpp"
#include "text.hpp"
#include "tools/execution.hpp"
#include "tools/output_folder.hpp"
#include "trainer.hpp"

namespace language_model {
namespace {

void write_results(const Options& options, const Text& text, const std::vector<Curve>& curves,
                   const std::vector<double>& values, cpnsa::tool::OutputFolder& output) {
  output.add_text("loss.csv", to_csv(curves.front()));
  output.add_text(checkpoint_name, to_bytes(options, values));
  const std::string title =
      fmt::format("Loss of a byte-level language model: {} bytes per sequence, {} layers of width {}, {} / {} heads",
                  options.tokens, options.layers, options.width, options.heads, options.kv_heads);
  output.add_text("loss.svg", plot(curves, text.unigram_entropy(), title));
  output.commit({});
}

// If this rank fails alone, ends the waits of the others too; no effect if all ranks fail with the same error.
Curve run(Trainer& trainer, const Options& options, const std::string& name, cpnsa::Communicator& communicator) {
  Curve curve{name, {}};
  Progress progress(options);
  try {
    for (std::int64_t step = 1; step <= options.steps; ++step) {
      const StepReport report = trainer.step(step);
      curve.losses.push_back(report.loss);
      if (communicator.rank() == 0) progress.step(step, report);
    }
  } catch (const std::exception& error) {
    communicator.abort(error.what());
    throw;
  }
  return curve;
}

}  // namespace

void train(const Options& options, const cpnsa::tool::RankPlace& place) {
  cpnsa::Communicator& control = place.control;
  const bool first = control.rank() == 0;
  const std::string name = fmt::format("{} attention, {} rank{}", options.full_attention ? "full" : "nsa",
                                       control.size(), control.size() == 1 ? "" : "s");
  std::vector<Curve> curves{{name, {}}};  // the curve of this run, and those to compare it with
  std::optional<Text> text;
  std::optional<cpnsa::tool::Execution> execution;
  std::optional<cpnsa::tool::OutputFolder> output;  // on rank 0
  std::unique_ptr<model::Operations> operations;
  cpnsa::agree_on(control, "open", [&] {
    text.emplace(options.text, options.tokens);
    execution.emplace(options.execution, place);
    operations = model::make_operations(execution->device(), execution->dtype());
    execution->device().check_supported(options.attention().config, execution->dtype());
    if (first) {
      for (const std::string& path : options.compare) curves.push_back(read_curve(path));
      output.emplace(options.out);
      for (const char* file : {"loss.csv", "loss.svg", checkpoint_name}) output->check(file);
    }
  });
  cpnsa::agree(control,
               fmt::format("{} {} text={:016x}", options.describe(), execution->describe(), text->fingerprint()));
  execution->connect();

  cpnsa::Communicator& communicator = execution->communicator();
  Trainer trainer(options, *text, *operations, communicator);
  if (first) {
    fmt::print("{} ({}, {}), sequences of {} bytes, {} layers of width {}, {} parameters\n", name,
               execution->device().description(), communicator.name(), options.tokens, options.layers, options.width,
               trainer.parameters());
    std::fflush(stdout);
  }
  const auto begin = std::chrono::steady_clock::now();
  curves.front() = run(trainer, options, name, communicator);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  cpnsa::agree_on(control, "results", [&] {
    if (first) write_results(options, *text, curves, trainer.values(), *output);
  });
  if (first) print_summary(options, *text, curves.front(), seconds.count(), operations->peak_bytes());
}

}  // namespace language_model
