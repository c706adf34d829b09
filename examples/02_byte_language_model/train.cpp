#include "train.hpp"

#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <optional>

#include "cpnsa/error.hpp"
#include "curve.hpp"
#include "plot.hpp"
#include "report.hpp"
#include "text.hpp"
#include "trainer.hpp"

namespace language_model {
namespace {

// Does what may fail on one rank alone, and goes on only where it succeeded on all of them with the same result.
void together(cpnsa::Communicator& communicator, const std::function<std::string()>& local) {
  std::string result, problem;
  try {
    result = local();
  } catch (const std::exception& error) {
    problem = error.what();
  }
  cpnsa::agree(communicator, result, problem);
}

void create_folder(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error || !std::filesystem::is_directory(path))
    throw cpnsa::ArgumentError(fmt::format("--out: found {} ({}), expected a folder that can be created", path,
                                           error ? error.message() : "no folder"));
}

void write_results(const Options& options, const Text& text, const std::vector<Curve>& curves) {
  const std::filesystem::path folder(options.out);
  write_file((folder / "loss.csv").string(), to_csv(curves.front()));
  write_file((folder / "loss.svg").string(), plot(curves, text.unigram_entropy()));
}

}  // namespace

void train(const Options& options, cpnsa::Communicator& communicator) {
  const bool first = communicator.rank() == 0;
  const std::string name = fmt::format("{} attention, {} rank{}", options.full_attention ? "full" : "nsa",
                                       communicator.size(), communicator.size() == 1 ? "" : "s");
  std::vector<Curve> curves{{name, {}}};  // this run's, and those to compare it with
  std::optional<Text> text;
  together(communicator, [&] {
    text.emplace(options.text, options.tokens);
    if (first) {
      for (const std::string& path : options.compare) curves.push_back(read_curve(path));
      create_folder(options.out);
    }
    return fmt::format("{} text={:016x}", options.describe(), text->fingerprint());
  });

  Trainer trainer(options, *text, communicator);
  if (first) {
    fmt::print("{} ({}), sequences of {} bytes, {} layers of width {}, {} parameters\n", name, communicator.name(),
               options.tokens, options.layers, options.width, trainer.parameters());
    std::fflush(stdout);
  }
  const auto begin = std::chrono::steady_clock::now();
  Progress progress(options);
  for (std::int64_t step = 1; step <= options.steps; ++step) {
    const StepReport report = trainer.step(step);
    curves.front().losses.push_back(report.loss);
    if (first) progress.step(step, report);
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  together(communicator, [&] {
    if (first) write_results(options, *text, curves);
    return std::string("results");
  });
  if (first) print_summary(options, *text, curves.front(), seconds.count());
}

}  // namespace language_model
